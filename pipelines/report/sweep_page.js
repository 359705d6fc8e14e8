"use strict";
const dark = matchMedia("(prefers-color-scheme: dark)");
const figures = JSON.parse(document.getElementById("figures").textContent);

// The plots take the page's colours, so they follow it from light to dark.
function theme() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const line = colour("--line");
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true };
  return {
    layout: {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("--ink"), family: "system-ui, sans-serif", size: 12 },
      hoverlabel: { bgcolor: colour("--card"), bordercolor: line, font: { color: colour("--ink") }, align: "left" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--soft"), activecolor: colour("--ink") },
      xaxis: axis,
      yaxis: axis,
    },
  };
}

for (const figure of figures) {
  // The buttons are named one by one, because plotly's own choice has one that sends the data to a service.
  const zoom = figure.data[0].type === "parcoords" ? [] : ["zoom2d", "pan2d", "resetScale2d"];
  const buttons = { displayModeBar: figure.wide ? "hover" : false, modeBarButtons: [[...zoom, "toImage"]] };
  const options = { responsive: true, displaylogo: false, ...buttons };
  Plotly.newPlot(figure.id, figure.data, { ...figure.layout, template: theme() }, options);
}
dark.addEventListener("change", () => {
  for (const figure of figures) Plotly.relayout(figure.id, { template: theme() });
});
