// Theme, tabs, figures, pages of heads and the search of tokens. Figures are drawn when first shown.
(() => {
  "use strict";
  const root = document.documentElement;
  const themes = JSON.parse(document.getElementById("templates").textContent);
  const config = JSON.parse(document.getElementById("config").textContent);

  function figureOf(plot) {
    const figure = JSON.parse(plot.nextElementSibling.textContent);
    if (root.dataset.theme === "dark") darken(figure, false);
    const small = plot.clientWidth < 560;
    figure.layout.template = themes[root.dataset.theme];
    figure.layout.autosize = true;
    delete figure.layout.width;
    if (small) shrink(figure);
    hold(figure);
    return figure;
  }

  // Axes of names are not dragged: a click there leads to a head. A finger scrolls the page.
  function hold(figure) {
    const touched = matchMedia("(hover: none)").matches;
    if (touched) figure.layout.dragmode = false;
    for (const key of Object.keys(figure.layout).filter(key => /^[xy]axis\d*$/.test(key))) {
      const short = key.replace("axis", "");
      const mine = figure.data.filter(trace => (trace[`${key[0]}axis`] || key[0]) === short);
      const named = mine.some(trace => typeof (trace[key[0]] || [])[0] === "string");
      if (named || touched) figure.layout[key] = { ...figure.layout[key], fixedrange: true };
    }
  }

  // Pages of heads: every name in a figure leads there, as names in texts do by their links.
  const sheets = new Map([...document.querySelectorAll(".sheet")].map(
    sheet => [sheet.dataset.name, sheet.id]));
  function sheetOf(...texts) {
    for (const text of texts) {
      const name = (String(text ?? "").match(/L\d+(?:H\d+|MLP)(?!\w)/) || [])[0];
      if (sheets.has(name)) return sheets.get(name);
    }
    return undefined;
  }

  function goTo(sheet) { if (sheet !== undefined) location.hash = sheet; }

  function afterPlot(plot) {
    const texts = ".xtick text, .ytick text, .annotation-text";
    for (const text of plot.querySelectorAll(texts)) {
      const found = sheetOf(text.textContent) !== undefined;
      text.classList.toggle("to-sheet", found);
    }
    for (const button of plot.querySelectorAll(".modebar-btn")) button.tabIndex = -1;
    for (const text of plot.querySelectorAll(".heatmap-label text")) {
      if (text.style.fill === "rgb(68, 68, 68)") text.style.fill = "#000";  // reads better
    }
  }

  // Colours that do not work on both backgrounds; a text that says "black" stays what it is.
  const dark_colours = {
    "#000000": "#f2f2f2", black: "#f2f2f2", lightgrey: "#4a525c", white: "#14171b",
    "#0072B2": "#3f97d4",
  };
  function darken(node, colour) {
    for (const [key, value] of Object.entries(node)) {
      const here = colour || /color$/.test(key);
      if (value !== null && typeof value === "object") darken(value, here && Array.isArray(value));
      else if (here && Object.hasOwn(dark_colours, value)) node[key] = dark_colours[value];
    }
  }

  // A phone: smaller type, the title above the figure wraps, no side legends.
  function shrink(figure) {
    const layout = figure.layout;
    layout.font = { ...layout.font, size: 10 };
    layout.margin = { ...layout.margin, l: 40, r: 10 };
    for (const key of Object.keys(layout)) {
      if (/^[xy]axis/.test(key)) layout[key] = { ...layout[key], automargin: true };
    }
    if (layout.legend === undefined || layout.legend.orientation !== "h") {
      layout.legend = { ...layout.legend, orientation: "h", x: 0, y: -0.2, yanchor: "top" };
    }
  }

  function draw(plot) {
    const figure = figureOf(plot);
    // Buttons only where a pointer can hover: elsewhere they would cover the figure for good.
    const buttons = matchMedia("(hover: hover)").matches ? "hover" : false;
    Plotly.react(plot, figure.data, figure.layout,
      { ...config, responsive: true, displayModeBar: buttons });
    if (!plot.dataset.heard) {
      plot.dataset.heard = "yes";
      plot.on("plotly_afterplot", () => afterPlot(plot));
      plot.on("plotly_click", ({ points: [point] }) =>
        goTo(sheetOf(point.y, point.x, `${point.y}${point.x}`, point.text, point.data.name)));
    }
    plot.dataset.drawn = root.dataset.theme;
    afterPlot(plot);
  }

  function drawVisible() {
    for (const plot of document.querySelectorAll(".plot")) {
      const shown = plot.offsetParent !== null;
      if (shown && plot.dataset.drawn !== root.dataset.theme) draw(plot);
    }
  }

  function setTheme(theme, keep) {
    root.dataset.theme = theme;
    const button = document.getElementById("theme");
    button.textContent = theme === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to ${theme === "dark" ? "light" : "dark"} colours`);
    if (keep) { try { localStorage.setItem("lens-slt-theme", theme); } catch { /* a file page */ } }
    drawVisible();
  }

  function select(tab, focus) {
    const list = tab.parentElement;
    for (const other of list.children) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", chosen);
      other.tabIndex = chosen ? 0 : -1;
      document.getElementById(other.getAttribute("aria-controls")).hidden = !chosen;
    }
    if (focus) tab.focus();
    drawVisible();
  }

  document.addEventListener("click", (event) => {
    const tab = event.target.closest('[role="tab"]');
    if (tab) select(tab, false);
    const name = event.target.closest(".to-sheet");
    if (name) goTo(sheetOf(name.textContent));
  });
  document.addEventListener("toggle", drawVisible, true);  // what was folded
  addEventListener("load", drawVisible);  // the page of a head that the address names
  addEventListener("hashchange", () => {
    drawVisible();
    const title = document.querySelector(".sheet:target h2");
    if (title) { title.focus({ preventScroll: true }); scrollTo({ top: 0, behavior: "instant" }); }
  });
  document.addEventListener("keydown", (event) => {
    const tab = event.target.closest('[role="tab"]');
    if (!tab) return;
    const tabs = [...tab.parentElement.children], here = tabs.indexOf(tab);
    const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    select(tabs[(to + tabs.length) % tabs.length], true);
  });

  let saved = null;
  try { saved = localStorage.getItem("lens-slt-theme"); } catch { /* a file page */ }
  const wanted = new URLSearchParams(location.search).get("theme") || saved;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  document.getElementById("theme").addEventListener("click", () =>
    setTheme(root.dataset.theme === "dark" ? "light" : "dark", true));
  dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light", false));
  setTheme(wanted === "dark" || wanted === "light" ? wanted : dark.matches ? "dark" : "light", false);
  let width = innerWidth;
  addEventListener("resize", () => {
    if ((width < 560) === (innerWidth < 560)) return;
    width = innerWidth;
    for (const plot of document.querySelectorAll(".plot")) delete plot.dataset.drawn;
    drawVisible();
  });

  // Tokens of the probe that end with a text, in context.
  const SHOWN = 20, BEFORE = 24, FULL = 3, STRONGEST = 0.65;
  const all = JSON.parse(document.getElementById("all-tokens")?.textContent || "null");

  function ending(text) {
    const wanted = text.toLowerCase(), found = [];
    for (let end = 0, begin = 0, said = ""; end < all.texts.length; end++) {
      if (all.sequence[end] !== all.sequence[begin]) { begin = end; said = ""; }
      const own = all.texts[end].toLowerCase();
      said = (said + own).slice(-(wanted.length + own.length));
      const at = said.lastIndexOf(wanted);  // ends within this token
      if (at >= 0 && at + wanted.length > said.length - own.length) found.push(end);
    }
    return found;
  }

  function strip(token, scores) {
    const line = document.createElement("li");
    const number = document.createElement("span");
    number.className = "score";
    number.textContent = (scores[token] > 0 ? "+" : "") + (scores[token] / 10).toFixed(1);
    line.append(number);
    for (let i = Math.max(0, token - BEFORE); i <= token; i++) {
      if (all.sequence[i] !== all.sequence[token]) continue;
      const word = document.createElement("span"), score = scores[i] / 10;
      word.className = i === token ? "token here" : "token";
      const strength = STRONGEST * Math.min(Math.abs(score) / FULL, 1);
      word.style.background = `rgba(var(--${score > 0 ? "high" : "low"}), ${strength.toFixed(2)})`;
      word.title = `score ${score.toFixed(1)}`;
      word.textContent = all.texts[i];
      line.append(word);
    }
    return line;
  }

  function search() {
    const text = document.getElementById("find").value;
    const scores = all.columns[document.getElementById("by").value];
    const order = Number(document.getElementById("order").value);
    const found = text ? ending(text) : all.texts.map((_, i) => i);
    if (order) found.sort((a, b) => order * (scores[a] - scores[b]));
    const more = found.length > SHOWN ? `, ${SHOWN} are shown` : "";
    document.getElementById("n-found").textContent =
      `${found.length} of ${all.texts.length} tokens${more}.`;
    document.getElementById("found").replaceChildren(
      ...found.slice(0, SHOWN).map(token => strip(token, scores)));
  }
  if (all) {
    for (const id of ["find", "by", "order"]) {
      document.getElementById(id).addEventListener("input", search);
    }
    search();
  }
})();
