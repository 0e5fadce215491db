// Two views of an image as pictures: where they lie in it, and before and after the change of colors.

function picture(source, text) {
  const made = element("img");
  made.src = source;
  made.alt = text;
  return made;
}

function caption(name, tag = "figcaption") {
  const made = element(tag, "name", name.split("/").pop());
  made.title = name;
  return made;
}

// Where two crops lie: in their image if the run has kept it, else in what the two of them show.
function frames(views, whole) {
  const [a, b] = views.map((view) => view.box);
  const [left, top, right, bottom] = whole ? [0, 0, whole.width, whole.height]
    : [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[2], b[2]), Math.max(a[3], b[3])];
  const width = right - left, height = bottom - top;
  const made = element("div", "frames");
  made.style.aspectRatio = `${width} / ${height}`;
  made.style.width = `${Math.min(100, (125 * width) / height)}%`; // a high one would need too much room
  if (whole) made.append(picture(whole.picture, "The image that both views come from"));
  for (const box of [a, b]) {
    const frame = element("i");
    frame.style.left = `${(100 * (box[0] - left)) / width}%`;
    frame.style.top = `${(100 * (box[1] - top)) / height}%`;
    frame.style.width = `${(100 * (box[2] - box[0])) / width}%`;
    frame.style.height = `${(100 * (box[3] - box[1])) / height}%`;
    made.append(frame);
  }
  return made;
}

// The image that the two views of a pair come from, and where they lie in it.
function origin(views, whole, name) {
  const made = element("figcaption", "origin");
  const words = element("div");
  words.append(caption(name, "b"));
  views.forEach((view, number) => {
    const [x0, y0, x1, y1] = view.box.map(Math.round);
    const mirrored = view.flipped ? ", mirrored" : "";
    words.append(element("span", number === 0 ? "first" : "second",
      `${number === 0 ? "left" : "right"}: ${x1 - x0} × ${y1 - y0} px at ${x0}, ${y0}${mirrored}`));
  });
  if (whole) words.append(element("span", "", `of ${whole.width} × ${whole.height} px`));
  const room = element("div");
  room.append(frames(views, whole));
  made.append(room, words);
  return made;
}

// Where the two crops of an image lie, and each of them before and after the change of colors.
function augmentation(views, whole, name) {
  const figure = element("figure", "augmented");
  const row = element("div");
  const where = element("div");
  where.append(frames(views, whole), element("span", "", "where"));
  row.append(where);
  views.forEach((view, number) => {
    const side = number === 0 ? "first" : "second";
    for (const [source, text] of [[view.before, view.flipped ? "crop, mirrored" : "crop"], [view.after, "as seen"]]) {
      const cell = element("div");
      cell.append(picture(source, `${side} view: ${text}`), element("span", side, text));
      row.append(cell);
    }
  });
  figure.append(row, caption(name));
  return figure;
}
