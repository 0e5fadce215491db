// Puts the page together: light and dark, the curves, the moments, and the buttons that copy.

const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const prefersDark = matchMedia("(prefers-color-scheme: dark)");

// A page from disk may not be allowed to remember anything.
function remembered(store, ...words) {
  try {
    return words.length > 1 ? window[store].setItem(...words) : window[store].getItem(...words);
  } catch {
    return null;
  }
}

function setTheme(theme) {
  root.dataset.theme = theme;
  curves?.draw();
  moments?.draw();
}

let curves = null, moments = null;
setTheme(remembered("localStorage", "densecl-theme") || (prefersDark.matches ? "dark" : "light"));
prefersDark.addEventListener("change", () => {
  if (!remembered("localStorage", "densecl-theme")) setTheme(prefersDark.matches ? "dark" : "light");
});
document.getElementById("theme").addEventListener("click", () => {
  const theme = root.dataset.theme === "dark" ? "light" : "dark";
  remembered("localStorage", "densecl-theme", theme);
  setTheme(theme);
});

for (const mark of document.querySelectorAll("[data-run]")) {
  mark.style.background = `var(--c${Number(mark.dataset.run) % COLORS})`;
}

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    } catch {
      getSelection().selectAllChildren(code); // then it is one key away
    }
  });
}

if (data.moments.length) moments = new Moments(data.moments);
if (data.curves.length) {
  curves = new Curves(document.getElementById("charts"), data.curves, data.runs);
  if (moments) curves.mark(moments.moment.step);
  loadPlotly().then(
    () => curves.draw(),
    () => document.getElementById("charts").prepend(
      element("p", "quiet", "The curves need a browser of 2023 or newer.")),
  );
}

// Served by `--watch`: reload when a file of the run has changed.
if (data.watch) {
  const began = data.watch;
  setInterval(async () => {
    try {
      const now = await (await fetch("/changed", { cache: "no-store" })).text();
      if (now !== began) location.reload();
    } catch {
      document.querySelector(".live")?.replaceChildren("not watched any more");
    }
  }, 3000);
}
