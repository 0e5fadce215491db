// The same views at several moments: matches, colors of cells, and how like a chosen cell all others are.

const LINES = 12; // of a pair, at most

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

function decoded(run) {
  if (run.decoded) return run;
  run.decoded = true;
  const cells = run.grid[0] * run.grid[1], dims = run.dims;
  for (const moment of run.moments) {
    moment.colors = bytes(moment.colors);
    moment.match = new Uint16Array(bytes(moment.match).buffer);
    moment.hit = bytes(moment.hit);
    const short = new Int8Array(bytes(moment.vectors).buffer);
    moment.vectors = new Float32Array(short);
    for (let cell = 0; cell < run.views.length * cells; cell++) {
      let sum = 0;
      for (let dim = 0; dim < dims; dim++) sum += short[cell * dims + dim] ** 2;
      const length = Math.sqrt(sum) || 1;
      for (let dim = 0; dim < dims; dim++) moment.vectors[cell * dims + dim] /= length;
    }
  }
  return run;
}

function sharp(canvas) {
  const scale = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * scale)) canvas.width = Math.round(width * scale);
  if (canvas.height !== Math.round(height * scale)) canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  return [pen, width, height];
}

// Where a cell of a view shows its image, in pixels of the image.
function place(view, grid, cell) {
  const [x0, y0, x1, y1] = view.box;
  let across = ((cell % grid[1]) + 0.5) / grid[1];
  if (view.flipped) across = 1 - across;
  return [x0 + across * (x1 - x0), y0 + ((Math.floor(cell / grid[1]) + 0.5) / grid[0]) * (y1 - y0)];
}

// Where a view shows a place of its image, from 0 to 1; null if it does not.
function within(view, [x, y]) {
  const [x0, y0, x1, y1] = view.box;
  let across = (x - x0) / (x1 - x0);
  const down = (y - y0) / (y1 - y0);
  if (view.flipped) across = 1 - across;
  return across < 0 || across > 1 || down < 0 || down > 1 ? null : [across, down];
}

class Moments {
  constructor(runs) {
    this.runs = runs;
    this.show = "colors";
    this.asked = null; // view and cell
    this.slider = document.getElementById("moment");
    this.which = document.getElementById("which");
    runs.forEach((run, number) => {
      const option = element("option", "", run.name);
      option.value = number;
      this.which.append(option);
    });
    this.which.hidden = runs.length < 2;
    this.which.addEventListener("change", () => this.open(Number(this.which.value)));
    this.slider.addEventListener("input", () => this.draw());
    document.getElementById("play").addEventListener("click", () => this.play());
    for (const button of document.querySelectorAll("[data-show]")) {
      button.addEventListener("click", () => this.choose(button.dataset.show));
    }
    document.getElementById("clear").addEventListener("click", () => this.ask(null));
    new ResizeObserver(() => this.draw()).observe(document.getElementById("cells"));
    this.open(0);
  }

  open(number) {
    this.run = decoded(this.runs[number]);
    this.asked = null;
    this.slider.max = this.run.moments.length - 1;
    const kept = remembered("sessionStorage", "moment");
    this.slider.value = !kept ? this.run.moments.length - 1 : kept;
    this.build();
    this.draw();
  }

  get moment() {
    return this.run.moments[Number(this.slider.value)];
  }

  build() {
    const { run } = this;
    const half = run.views.length / 2;
    const pairs = document.getElementById("pairs"), cells = document.getElementById("cells");
    const augmented = document.getElementById("augmented");
    for (const root of [pairs, cells, augmented]) root.replaceChildren();
    this.lines = [];
    this.tiles = new Array(run.views.length);
    for (let pair = 0; pair < half; pair++) {
      const views = [run.views[pair], run.views[half + pair]];
      const figure = element("figure", "pair");
      const box = element("div");
      for (const view of views) box.append(picture(view.after, "A view of the image"));
      const canvas = element("canvas");
      box.append(canvas);
      figure.append(box, origin(views, run.wholes[pair], run.names[pair]));
      pairs.append(figure);
      this.lines.push(canvas);
      const both = element("div", "both");
      both.append(this.tile(pair), this.tile(half + pair));
      cells.append(both);
      augmented.append(augmentation(views, run.wholes[pair], run.names[pair]));
    }
  }

  tile(number) {
    const figure = element("figure", "cell");
    const box = element("div");
    box.tabIndex = 0;
    box.setAttribute("role", "button");
    box.setAttribute("aria-label", `View ${number + 1}: choose a cell`);
    const canvas = element("canvas");
    box.append(picture(this.run.views[number].after, ""), canvas);
    const note = element("figcaption");
    figure.append(box, note);
    const [rows, cols] = this.run.grid;
    box.addEventListener("click", (event) => {
      if (event.detail === 0) return; // of the keyboard
      const area = canvas.getBoundingClientRect();
      const col = Math.min(cols - 1, Math.max(0, Math.floor(((event.clientX - area.left) / area.width) * cols)));
      const row = Math.min(rows - 1, Math.max(0, Math.floor(((event.clientY - area.top) / area.height) * rows)));
      const cell = row * cols + col;
      const same = this.asked && this.asked[0] === number && this.asked[1] === cell;
      this.ask(same ? null : [number, cell]);
    });
    box.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
      if (event.key === "Escape") return this.ask(null);
      if (!(event.key in moves) && event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      const own = this.asked && this.asked[0] === number;
      let [row, col] = own ? [Math.floor(this.asked[1] / cols), this.asked[1] % cols] : [rows >> 1, cols >> 1];
      if (own && event.key in moves) {
        row = Math.min(rows - 1, Math.max(0, row + moves[event.key][0]));
        col = Math.min(cols - 1, Math.max(0, col + moves[event.key][1]));
      }
      this.ask([number, row * cols + col]);
    });
    this.tiles[number] = { canvas, note };
    return figure;
  }

  choose(show) {
    this.show = show;
    this.ask(null);
  }

  ask(asked) {
    this.asked = asked;
    document.getElementById("clear").hidden = asked === null;
    document.getElementById("cells").classList.toggle("asking", asked !== null);
    for (const button of document.querySelectorAll("[data-show]")) {
      button.setAttribute("aria-pressed", String(asked === null && button.dataset.show === this.show));
    }
    this.draw();
  }

  play() {
    const button = document.getElementById("play");
    const stop = () => {
      clearInterval(this.playing);
      this.playing = null;
      button.firstElementChild.textContent = "▶";
      button.setAttribute("aria-label", "Play");
    };
    if (this.playing) return stop();
    if (Number(this.slider.value) >= this.run.moments.length - 1) this.slider.value = 0;
    this.draw();
    button.firstElementChild.textContent = "❚❚";
    button.setAttribute("aria-label", "Pause");
    this.playing = setInterval(() => {
      this.slider.value = Number(this.slider.value) + 1;
      this.draw();
      if (Number(this.slider.value) >= this.run.moments.length - 1) stop();
    }, 700);
  }

  draw() {
    const { moment, run } = this;
    document.getElementById("when").textContent = `step ${moment.step.toLocaleString("en")}`;
    curves?.mark(moment.step);
    if (Number(this.slider.value) < run.moments.length - 1) remembered("sessionStorage", "moment", this.slider.value);
    else remembered("sessionStorage", "moment", "");
    const judged = document.getElementById("judged");
    judged.replaceChildren();
    if (moment.accuracy !== null) {
      judged.append(element("strong", "", `${(100 * moment.accuracy).toFixed(1)} %`),
        ` of the cells of these pairs find their place; by chance ${(100 * moment.chance).toFixed(1)} % would.`);
    }
    this.lines.forEach((canvas, pair) => this.drawLines(canvas, pair));
    this.asked ? this.drawSimilarities() : this.tiles.forEach((tile, number) => this.drawColors(tile, number));
    if (!this.asked) document.getElementById("asked").textContent = "";
  }

  drawLines(canvas, pair) {
    const [pen, width, height] = sharp(canvas);
    const [rows, cols] = this.run.grid, cells = rows * cols;
    const view = (width - 10) / 2;
    const known = [];
    for (let cell = 0; cell < cells; cell++) if (this.moment.hit[pair * cells + cell] !== 2) known.push(cell);
    const count = Math.min(LINES, known.length);
    const chosen = [];
    for (let n = 0; n < count; n++) chosen.push(known[Math.floor(((n + 0.5) * known.length) / count)]);
    chosen.sort((a, b) => this.moment.hit[pair * cells + a] - this.moment.hit[pair * cells + b]); // right ones on top
    for (const cell of chosen) {
      const right = this.moment.hit[pair * cells + cell] === 1;
      const match = this.moment.match[pair * cells + cell];
      const from = [(((cell % cols) + 0.5) / cols) * view, ((Math.floor(cell / cols) + 0.5) / rows) * height];
      const to = [view + 10 + (((match % cols) + 0.5) / cols) * view, ((Math.floor(match / cols) + 0.5) / rows) * height];
      const shade = color(right ? "--right" : "--wrong");
      const strokes = right ? [["rgba(14,16,20,0.6)", 4.4, []], [shade, 2.3, []]]
        : [["rgba(14,16,20,0.38)", 3.2, []], [shade, 1.5, [5, 4]]];
      for (const [style, wide, dash] of strokes) {
        pen.setLineDash(dash);
        pen.strokeStyle = style;
        pen.lineWidth = wide;
        pen.beginPath();
        pen.moveTo(...from);
        pen.lineTo(...to);
        pen.stroke();
      }
      pen.setLineDash([]);
      for (const point of [from, to]) {
        pen.beginPath();
        pen.arc(...point, right ? 3.8 : 3.2, 0, 2 * Math.PI);
        pen.fillStyle = shade;
        pen.fill();
        pen.strokeStyle = "#fff";
        pen.lineWidth = 1.4;
        pen.stroke();
      }
    }
  }

  drawColors({ canvas, note }, number) {
    const [pen, width, height] = sharp(canvas);
    note.textContent = "";
    if (this.show === "image") return;
    const [rows, cols] = this.run.grid;
    this.paint(pen, width, height, (cell) => {
      const at = 3 * (number * rows * cols + cell), shade = this.moment.colors;
      return [shade[at], shade[at + 1], shade[at + 2], this.show === "over" ? 150 : 255];
    });
  }

  // Colors of all cells, each a square of the canvas.
  paint(pen, width, height, shade) {
    const [rows, cols] = this.run.grid;
    const small = document.createElement("canvas");
    small.width = cols;
    small.height = rows;
    const image = new ImageData(cols, rows);
    for (let cell = 0; cell < rows * cols; cell++) image.data.set(shade(cell), 4 * cell);
    small.getContext("2d").putImageData(image, 0, 0);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(small, 0, 0, width, height);
  }

  similarities(number, cell) {
    const { vectors } = this.moment, { dims } = this.run;
    const all = vectors.length / dims;
    const start = (number * this.run.grid[0] * this.run.grid[1] + cell) * dims;
    const found = new Float32Array(all);
    for (let other = 0; other < all; other++) {
      let sum = 0;
      for (let dim = 0; dim < dims; dim++) sum += vectors[start + dim] * vectors[other * dims + dim];
      found[other] = sum;
    }
    return found;
  }

  drawSimilarities() {
    const [rows, cols] = this.run.grid, cells = rows * cols;
    const [asked, askedCell] = this.asked;
    const found = this.similarities(asked, askedCell);
    const sorted = Float32Array.from(found).sort();
    const low = sorted[Math.floor(sorted.length / 2)], span = Math.max(1e-6, 1 - low);
    const half = this.run.views.length / 2;
    const partner = (asked + half) % this.run.views.length;
    let right = null;
    this.tiles.forEach(({ canvas, note }, number) => {
      const [pen, width, height] = sharp(canvas);
      this.paint(pen, width, height, (cell) => {
        const strength = Math.max(0, (found[number * cells + cell] - low) / span);
        return [255, 196, 61, Math.round(235 * strength ** 1.6)];
      });
      let best = -1;
      for (let cell = 0; cell < cells; cell++) {
        if (number === asked && cell === askedCell) continue;
        if (best < 0 || found[number * cells + cell] > found[number * cells + best]) best = cell;
      }
      if (number === asked) ring(pen, width, height, this.run.grid, askedCell, "#ffffff", 3);
      if (best >= 0) {
        ring(pen, width, height, this.run.grid, best, number === partner ? color("--right") : "#ffc43d", 2);
        note.textContent = found[number * cells + best].toFixed(2);
      }
      if (number === partner) {
        right = within(this.run.views[partner], place(this.run.views[asked], this.run.grid, askedCell));
        if (right) cross(pen, right[0] * width, right[1] * height);
      }
    });
    document.getElementById("asked").textContent =
      "Below each view: the cosine of its nearest cell. " +
      (right ? "The cross in the other view of the same image marks where the chosen cell really lies."
        : "The other view of the same image does not show the chosen cell.");
  }
}

function ring(pen, width, height, grid, cell, shade, thick) {
  const [rows, cols] = grid;
  const side = Math.max(10, width / cols), x = (((cell % cols) + 0.5) / cols) * width;
  const y = ((Math.floor(cell / cols) + 0.5) / rows) * height;
  for (const [style, wide] of [["rgba(14,16,20,0.75)", thick + 2], [shade, thick]]) {
    pen.strokeStyle = style;
    pen.lineWidth = wide;
    pen.strokeRect(x - side / 2, y - side / 2, side, side);
  }
}

function cross(pen, x, y) {
  for (const [style, wide] of [["rgba(14,16,20,0.8)", 4.5], ["#ffffff", 2]]) {
    pen.strokeStyle = style;
    pen.lineWidth = wide;
    pen.beginPath();
    pen.moveTo(x - 5, y);
    pen.lineTo(x + 5, y);
    pen.moveTo(x, y - 5);
    pen.lineTo(x, y + 5);
    pen.stroke();
  }
}
