"use strict";
const sections = JSON.parse(document.getElementById("data").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function look() {
  const ink = dark.matches ? "#e9eef1" : "#1d2429", soft = dark.matches ? "#a9b8c1" : "#55626a", line = dark.matches ? "#333e46" : "#dde3e7";
  const text = { labelColor: soft, titleColor: soft, labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500 };
  return {
    background: "transparent", font: "system-ui, 'Segoe UI', Roboto, sans-serif", view: { stroke: null }, title: { color: ink, anchor: "start", fontSize: 13 },
    axis: { ...text, gridColor: line, domainColor: line, tickColor: line }, legend: text, text: { color: ink },
  };
}

// To a screen reader a plot is one picture with the page's own words for it, and where it is wider than the screen, keys can scroll it.
function draw(element, spec) {
  const description = (element.dataset.label ??= element.getAttribute("aria-label"));
  return vegaEmbed(element, { ...spec, description, config: look() }, { actions: false, renderer: "svg" }).then((result) => {
    element.setAttribute("role", "img");
    element.querySelector("svg").setAttribute("aria-hidden", "true");
    if (element.scrollWidth > element.clientWidth) element.tabIndex = 0;
    return result.view;
  });
}

function counts(one, threshold) {
  const above = (values) => values.filter((value) => value > threshold).length;
  const tp = above(one.bad), fp = above(one.good);
  return { tp, fn: one.bad.length - tp, fp, tn: one.good.length - fp };
}

function shown({ tp, fn, fp, tn }) {
  const ratio = (part, whole) => (whole ? (part / whole).toFixed(3) : "n/a");
  const alarms = fp + tn ? ((1000 * fp) / (fp + tn)).toFixed(0) : "n/a";
  return { tp, fn, fp, tn, recall: ratio(tp, tp + fn), precision: ratio(tp, tp + fp), f1: ratio(2 * tp, 2 * tp + fp + fn), alarms };
}

function explorer(root) {
  const { detail, charts } = sections[Number(root.dataset.section)];
  const find = (name) => root.querySelector("." + name);
  const slider = find("slider"), known = find("known");
  let one, low, high, threshold, view;

  function move(value, keepSlider) {
    threshold = value;
    if (!keepSlider) slider.value = String(Math.round((1000 * (value - low)) / (high - low)));
    find("value").textContent = value.toPrecision(4);
    slider.setAttribute("aria-valuetext", find("value").textContent);
    slider.dataset.threshold = String(value);
    for (const [name, text] of Object.entries(shown(counts(one, value)))) root.querySelector(`[data-value="${name}"]`).textContent = text;
    if (view) view.signal("threshold", value).run();
  }

  function choose(place) {
    one = detail[place];
    const values = [...one.good, ...one.bad, ...Object.values(one.thresholds)];
    low = Math.min(...values), high = Math.max(...values);
    if (high === low) high = low + 1;
    known.replaceChildren(...Object.entries(one.thresholds).map(([name, value]) => new Option(`${name}: ${value.toPrecision(4)}`, String(value))));
    find("note").textContent = one.note;
    find("suspicious").textContent = one.suspicious.length ? `Training images that look most like defects: ${one.suspicious.join(", ")}` : "";
    view = null;
    move(one.default ?? (low + high) / 2);
    if (one.histogram) draw(find("histogram"), one.histogram).then((drawn) => { view = drawn; view.signal("threshold", threshold).run(); });
    const curves = charts["curves:" + one.category];
    if (curves) draw(find("curves"), curves);
  }

  slider.addEventListener("input", () => move(low + (Number(slider.value) / 1000) * (high - low), true));
  known.addEventListener("change", () => move(Number(known.value)));
  find("category").addEventListener("change", (event) => choose(Number(event.target.value)));
  choose(Number(find("category").value));
  return () => choose(Number(find("category").value));
}

const explorers = [...document.querySelectorAll(".explorer")].map(explorer);
function drawAll() {
  for (const element of document.querySelectorAll("[data-chart]")) draw(element, sections[Number(element.dataset.section)].charts[element.dataset.chart]);
}
drawAll();
// What is folded away has no width to draw in.
for (const part of document.querySelectorAll("details")) part.addEventListener("toggle", () => window.dispatchEvent(new Event("resize")));
dark.addEventListener("change", () => { drawAll(); explorers.forEach((again) => again()); });
