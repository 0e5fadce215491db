// The curves, drawn by Plotly. Names come from files: everything that Plotly would read as markup is escaped.

const COLORS = 8;

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function lineColor(line, place, several) {
  return line.level ? "--soft" : `--c${(several ? line.run : place) % COLORS}`;
}

function asText(name) {
  return String(name).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

// A running mean that begins at the first value and gives the last ones the most weight.
function smooth(values, span) {
  const keep = 1 - 1 / span;
  let sum = 0, weight = 0;
  return values.map((value) => {
    sum = keep * sum + value;
    weight = keep * weight + 1;
    return sum / weight;
  });
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

class Curves {
  constructor(root, groups, runs) {
    this.runs = runs;
    this.several = runs.length > 1;
    this.hidden = new Set();
    this.charts = [];
    this.marked = null; // a step
    for (const group of groups) {
      root.append(element("h3", "", group.title));
      const grid = element("div", "charts");
      root.append(grid);
      for (const chart of group.charts) grid.append(this.figure(chart));
    }
    if (this.several) this.legend(document.getElementById("run-legend"));
  }

  figure(chart) {
    const figure = element("figure", "chart");
    const caption = element("figcaption");
    caption.append(element("b", "", chart.title));
    const names = element("span", "lines");
    chart.names = [...new Set(chart.lines.map((line) => line.name))];
    if (chart.names.length > 1) {
      chart.names.forEach((name, place) => {
        const line = chart.lines.find((one) => one.name === name);
        const label = element("span");
        const mark = element("i", line.level ? "level" : "");
        mark.style.borderColor = this.several ? "var(--soft)" : `var(${lineColor(line, place, false)})`;
        if (this.several && !line.level && place > 0) mark.style.borderTopStyle = "dotted";
        label.append(mark, name);
        names.append(label);
      });
    }
    caption.append(names);
    if (chart.note) caption.append(element("span", "note", chart.note));
    const plot = element("div", "plot");
    figure.append(caption, plot);
    this.charts.push({ chart, plot });
    return figure;
  }

  legend(root) {
    this.runs.forEach((run, number) => {
      const label = element("label");
      const box = element("input");
      box.type = "checkbox";
      box.checked = true;
      box.addEventListener("change", () => {
        box.checked ? this.hidden.delete(number) : this.hidden.add(number);
        this.draw();
      });
      const mark = element("i", "swatch");
      mark.style.background = `var(--c${number % COLORS})`;
      label.append(box, mark, element("span", "name", run.name));
      root.append(label);
    });
  }

  traces(chart) {
    const traces = [];
    for (const line of chart.lines) {
      if (this.hidden.has(line.run)) continue;
      const place = chart.names.indexOf(line.name);
      const shade = color(lineColor(line, place, this.several));
      const name = this.several
        ? `${asText(this.runs[line.run].name)}${chart.names.length > 1 ? `, ${line.name}` : ""}` : line.name;
      const noisy = !line.level && !chart.few && line.x.length > 80;
      const dash = line.level ? "dash" : this.several && place > 0 ? "dot" : "solid";
      traces.push({
        x: line.x, y: line.y, name, type: "scatter", mode: chart.few && !line.level ? "lines+markers" : "lines",
        line: { color: shade, width: line.level ? 1.3 : noisy ? 1 : 2, dash, shape: "linear" },
        marker: { color: shade, size: 5 }, cliponaxis: false, opacity: noisy ? 0.38 : 1,
        hovertemplate: `%{y:.4~g}${chart.unit}`,
      });
      if (noisy) {
        traces.push({
          x: line.x, y: smooth(line.y, line.x.length / 25), type: "scatter", mode: "lines", hoverinfo: "skip",
          line: { color: shade, width: 2, dash },
        });
      }
    }
    return traces;
  }

  layout(chart) {
    const soft = color("--soft"), grid = color("--line");
    const touch = matchMedia("(hover: none)").matches;
    const axis = { gridcolor: grid, zerolinecolor: grid, linecolor: grid, tickcolor: grid, fixedrange: touch,
      tickfont: { color: soft, size: 11 }, automargin: true };
    const values = chart.lines.flatMap((line) => line.y);
    const low = Math.min(...values), high = Math.max(...values);
    const last = Math.max(...chart.lines.map((line) => line.x[line.x.length - 1]));
    return {
      margin: { l: 44, r: 12, t: 8, b: 26 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: color("--sans"), color: color("--ink"), size: 12 }, showlegend: false,
      shapes: this.shapes(), hovermode: "x unified", dragmode: touch ? false : "zoom",
      hoverlabel: { bgcolor: color("--card"), bordercolor: grid, font: { color: color("--ink"), size: 12 }, namelength: 40 },
      xaxis: { ...axis, showgrid: false, range: [0, last * 1.02 || 1], hoverformat: ",d", unifiedhovertitle: { text: "step %{x:,d}" } },
      yaxis: { ...axis, ticksuffix: chart.unit, tickformat: "~g", nticks: 5, zeroline: false, 
        rangemode: low >= 0 && low < 0.4 * high ? "tozero" : "normal" },
    };
  }

  // A line at a step in all charts. They are redrawn once the slider rests, for there are many.
  mark(step) {
    if (step === this.marked) return;
    this.marked = step;
    document.getElementById("marked").textContent = `step ${step.toLocaleString("en")}`;
    clearTimeout(this.resting);
    this.resting = setTimeout(() => {
      const shapes = this.shapes();
      for (const { plot } of this.charts) if (plot.layout) window.Plotly.relayout(plot, { shapes });
    }, 60);
  }

  shapes() {
    if (this.marked === null) return [];
    const line = { color: color("--accent"), width: 1.2, dash: "dot" };
    return [{ type: "line", x0: this.marked, x1: this.marked, yref: "paper", y0: 0, y1: 1, line }];
  }

  draw() {
    if (!window.Plotly) return;
    for (const { chart, plot } of this.charts) {
      window.Plotly.react(plot, this.traces(chart), this.layout(chart), { displayModeBar: false, responsive: true });
    }
  }
}

// Plotly is on the page compressed, which makes it a third as large. The page's policy knows the hash of what is in it.
async function loadPlotly() {
  const packed = document.getElementById("plotly");
  if (!packed) return;
  const bytes = Uint8Array.from(atob(packed.textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}
