"use strict";
// What the filters leave of the page: rows, images and details of runs, and points and lines of charts.
const runs = JSON.parse(document.getElementById("runs").textContent);
const form = document.getElementById("filters");
const views = [];

function chosen() {
  const wanted = form ? [...new FormData(form)].filter(([, value]) => value) : [];
  return Object.keys(runs).filter((run) => wanted.every(([key, value]) => runs[run][key] === value));
}

function apply() {
  const shown = chosen();
  for (const element of document.querySelectorAll("[data-run]")) element.hidden = !shown.includes(element.dataset.run);
  for (const row of document.querySelectorAll("[data-runs]")) {
    row.hidden = !JSON.parse(row.dataset.runs).every((run) => shown.includes(run));
  }
  for (const view of views) view.signal("runs", shown).runAsync();
  if (form) document.getElementById("count").textContent = `${shown.length} of ${Object.keys(runs).length} runs`;
}

const theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : undefined;
for (const place of document.querySelectorAll(".chart")) {
  const spec = JSON.parse(place.nextElementSibling.textContent);
  const actions = { export: true, source: false, compiled: false, editor: false };
  // errors alone: Vega also warns of a chart that a filter has left empty
  const options = { actions, theme, renderer: "svg", logLevel: 1, config: { background: "transparent" } };
  vegaEmbed(place, spec, options).then(({ view }) => {
    views.push(view);
    apply();
  });
}
form?.addEventListener("change", apply);
apply();
