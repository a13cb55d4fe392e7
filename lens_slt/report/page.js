// Theme, tabs and figures of a report page. Figures are drawn when their tab is first shown.
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
    return figure;
  }

  // Colours that do not work on both backgrounds; a text that says "black" stays what it is.
  const dark_colours =
    { "#000000": "#f2f2f2", black: "#f2f2f2", lightgrey: "#4a525c", white: "#14171b" };
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
    plot.dataset.drawn = root.dataset.theme;
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
})();
