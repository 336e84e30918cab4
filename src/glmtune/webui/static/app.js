// What the page does in the browser beside htmx: live jobs, charts, rows of the form, uploads.
"use strict";

const root = () => document.body.dataset.root;
const csrfHeaders = () => ({ "X-CSRF-Token": document.body.dataset.csrf });

// --- live jobs -------------------------------------------------------------------------------------------------------

// One connection for all windows of a browser: live.js has it. Where there are no shared workers (Chrome on Android), a
// connection of the window's own while it is looked at: a browser has six for all its windows.

let livePort = null;
let liveSource = null;

function openPort() {
  if (livePort || !("SharedWorker" in window)) return livePort;
  const worker = new SharedWorker(`${root()}/static/live.js`, { name: "glmtune-live-1" });
  worker.onerror = () => { livePort = false; connectLive(); }; // not loaded, or refused
  worker.port.onmessage = (event) => showMessage(event.data);
  livePort = worker.port;
  return livePort;
}

function connectLive() {
  const panel = document.querySelector("[data-live]");
  const job = panel && ["running", "queued"].includes(panel.dataset.state) ? panel.dataset.live : null;
  if (job || livePort) {
    const port = openPort();
    if (port) {
      port.postMessage({ job, lang: document.documentElement.lang });
      return;
    }
  }
  const url = job && !document.hidden ? new URL(`${root()}/jobs/live?id=${encodeURIComponent(job)}`, location).href : "";
  if (liveSource && (liveSource.url !== url || liveSource.readyState === EventSource.CLOSED)) {
    liveSource.close();
    liveSource = null;
  }
  if (!url || liveSource) return;
  liveSource = new EventSource(url);
  liveSource.onmessage = (event) => showMessage(JSON.parse(event.data));
}

function showMessage({ job, kind, data }) {
  const panel = document.querySelector("[data-live]");
  if (!panel || panel.dataset.live !== job) return;
  if (kind === "part") showPart(data);
  if (kind === "progress") showProgress(data);
  if (kind === "curves") {
    const box = panel.querySelector("[data-curves]");
    if (box) { box.dataset.curves = JSON.stringify(data); drawCharts(box); }
  }
  if (kind === "end") {
    liveSource?.close();
    liveSource = null;
    announceEnd(panel, data.state);
  }
}

// Said again now and then: the worker takes a window that says nothing for one that is gone.
setInterval(connectLive, 30_000);
document.addEventListener("visibilitychange", connectLive);
window.addEventListener("pageshow", (event) => { if (event.persisted) connectLive(); });
window.addEventListener("pagehide", () => livePort && livePort.postMessage({ job: null }));

function showPart({ id, html }) {
  const place = document.getElementById(id);
  if (!place) return;
  const atEnd = place.scrollHeight - place.scrollTop - place.clientHeight < 30;
  place.innerHTML = html;
  if (atEnd) place.scrollTop = place.scrollHeight;
}

function showProgress({ percent, state }) {
  const isShown = percent !== undefined && percent !== null && state === "running";
  document.title = isShown ? `${percent} % · ${document.body.dataset.title}` : document.body.dataset.title;
}

function announceEnd(panel, state) {
  if (panel.dataset.state === "ended") return;
  panel.dataset.state = "ended";
  document.title = document.body.dataset.title;
  const job = panel.dataset.live;
  notifyEnd(job, panel.querySelector("h2").textContent, panel.querySelector(".state")?.textContent ?? state);
  htmx.ajax("GET", `${root()}/jobs/${job}/panel`, { target: "#job", swap: "outerHTML" });
  document.body.dispatchEvent(new CustomEvent("job-ended"));
}

// Windows that do not show the job notify too; a browser keeps one notification of a tag.
function notifyEnd(job, name, state) {
  const isSeen = !document.hidden && document.querySelector("[data-live]")?.dataset.live === job;
  if (isSeen || !("Notification" in window) || Notification.permission !== "granted") return;
  try {
    new Notification(`glmtune: ${name}`, { body: state, tag: job });
  } catch { /* browsers of phones know notifications of service workers only */ }
}

// --- the strip: memory and the job at work, on every tab -------------------------------------------------------------

let stripJob = null;
let stripTicks = 0;

setInterval(() => {
  stripTicks += 1;
  if (!document.hidden || stripTicks % 5 === 0) htmx.trigger("#strip", "refresh");
}, 4_000);

document.addEventListener("htmx:beforeSwap", ({ detail }) => {
  if (detail.target.id === "strip") detail.target.dataset.isOpen = document.getElementById("holders")?.open ?? false;
});
document.addEventListener("htmx:afterSwap", ({ detail }) => {
  if (detail.target.id !== "strip") return;
  const holders = document.getElementById("holders");
  if (holders) holders.open = detail.target.dataset.isOpen === "true";
  followJob(document.getElementById("strip-job"), document.getElementById("strip-ended"));
});

function followJob(running, ended) {
  const isShown = Boolean(document.querySelector("[data-live]"));
  if (!isShown) showProgress({ percent: running?.dataset.percent || null, state: running ? "running" : "" });
  if (stripJob && ended?.dataset.job === stripJob && !isShown) notifyEnd(stripJob, ended.dataset.name, ended.textContent);
  stripJob = running?.dataset.job ?? null;
}

// --- charts ----------------------------------------------------------------------------------------------------------

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const chartsOf = new WeakMap();
const isDark = matchMedia("(prefers-color-scheme: dark)");
isDark.addEventListener("change", () => document.querySelectorAll("[data-curves]").forEach(drawCharts));

function smooth(values, weight) {
  let mean = 0;
  return values.map((value, index) => {
    mean = weight * mean + (1 - weight) * value;
    return mean / (1 - weight ** (index + 1)); // without the zero it begins with
  });
}

function mergeSeries(series) {
  const steps = [...new Set(series.flatMap(([x]) => x))].sort((a, b) => a - b);
  const place = new Map(steps.map((step, index) => [step, index]));
  return [steps, ...series.map(([x, y]) => {
    const column = new Array(steps.length).fill(null);
    x.forEach((step, index) => { column[place.get(step)] = y[index]; });
    return column;
  })];
}

function drawCharts(box) {
  const { curves, best, metric } = JSON.parse(box.dataset.curves);
  const labels = JSON.parse(box.dataset.labels);
  const weight = Number(box.querySelector("[data-smoothing]")?.value ?? 0);
  const isLog = box.querySelector("[data-log-axis]")?.checked ?? false;
  const charts = [...box.querySelectorAll("[data-chart]")].map((place) => (
    [place, JSON.parse(place.dataset.chart).filter((name) => curves[name])]
  ));
  // First all: the columns, and with them the widths that charts are drawn in, follow the number of figures.
  for (const [place, names] of charts) place.closest("figure").hidden = !names.length;
  for (const [place, names] of charts) {
    updateChart(place, names, smoothCurves(names, curves, weight), { labels, isLog, best, metric });
  }
}

function smoothCurves(names, curves, weight) {
  return mergeSeries(names.map((name) => {
    const [x, y] = curves[name];
    const isSmoothed = y.length > 8 && weight > 0 && !name.startsWith("eval") && name !== "learning_rate";
    return [x, isSmoothed ? smooth(y, weight) : y];
  }));
}

// New points go into the chart that is there, so that what a user points at or has zoomed into stays.
function updateChart(place, names, data, options) {
  const width = Math.max(240, place.clientWidth || 480);
  const key = JSON.stringify([names, options.isLog, width, isDark.matches]);
  const old = chartsOf.get(place);
  if (old && old.key === key) {
    const [steps] = old.chart.data;
    const isZoomed = old.chart.scales.x.min > steps[0] || old.chart.scales.x.max < steps[steps.length - 1];
    Object.assign(old.options, options);
    old.chart.setData(data, !isZoomed);
    if (isZoomed) old.chart.redraw();
    return;
  }
  old?.chart.destroy();
  chartsOf.delete(place);
  if (names.length) chartsOf.set(place, { key, options, chart: drawChart(place, names, data, width, options) });
}

function drawChart(place, names, data, width, options) {
  const palette = ["--a", "--b", "--good", "--warn", "--faint"].map(colour);
  const series = names.map((name, index) => ({
    label: options.labels[name] ?? name,
    stroke: palette[index % palette.length],
    width: 2,
    dash: name.startsWith("eval_") ? [6, 4] : undefined,
    spanGaps: true,
    points: { show: data[0].length < 40 },
  }));
  const axis = { stroke: colour("--faint"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
  const hasEvaluations = names.some((name) => name.startsWith("eval_"));
  return new uPlot({
    width,
    height: 260,
    scales: { x: { time: false }, y: { distr: options.isLog ? 3 : 1 } },
    series: [{ label: options.labels.step ?? "step" }, ...series],
    axes: [axis, { ...axis, size: 60, values: (_, ticks) => ticks.map(formatTick) }],
    hooks: { draw: [(chart) => hasEvaluations && markBest(chart, options)] },
  }, data, place);
}

// uPlot rounds to a few places: a learning rate of 0.00002 would be 0.
function formatTick(value) {
  if (value === null) return "";
  return value !== 0 && Math.abs(value) < 0.001 ? value.toExponential() : String(Number(value.toPrecision(6)));
}

function markBest(chart, { best, metric, labels }) {
  if (best === null || best === undefined) return;
  const x = chart.valToPos(best, "x", true);
  const { ctx, bbox } = chart;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = colour("--good");
  ctx.setLineDash([3, 4]);
  ctx.beginPath();
  ctx.moveTo(x, bbox.top);
  ctx.lineTo(x, bbox.top + bbox.height);
  ctx.stroke();
  ctx.font = `${12 * devicePixelRatio}px system-ui`;
  const label = `${labels.best} ${best} · ${labels[metric] ?? metric}`;
  const isRight = x + 5 + ctx.measureText(label).width > bbox.left + bbox.width; // no room at the right
  ctx.textAlign = isRight ? "right" : "left";
  ctx.fillText(label, x + (isRight ? -5 : 5), bbox.top + 14 * devicePixelRatio);
  ctx.restore();
}

// --- forms -----------------------------------------------------------------------------------------------------------

function addRow(selector) {
  const rows = document.querySelector(selector);
  const row = rows.lastElementChild.cloneNode(true);
  for (const field of row.querySelectorAll("input")) {
    field.value = "";
    field.removeAttribute("id");
  }
  rows.append(row);
  htmx.process(row);
  row.querySelector("input").focus();
}

function removeRow(button) {
  const row = button.closest("[data-dataset]");
  const rows = row.parentElement;
  if (rows.children.length > 1) row.remove();
  else for (const field of row.querySelectorAll("input")) field.value = "";
  rows.dispatchEvent(new Event("change", { bubbles: true }));
}

function showMethodFields() {
  const method = document.querySelector("[data-method]:checked")?.value;
  for (const group of document.querySelectorAll("[data-method-fields]")) {
    group.hidden = group.dataset.methodFields !== (method === "qlora" ? "lora" : method);
  }
}

// Fields that only some tasks take are shown for those.
function showTaskFields() {
  const task = document.querySelector("[data-shows]:checked")?.dataset.shows;
  if (!task) return;
  for (const part of document.querySelectorAll("[data-shown-for]")) {
    part.hidden = !part.dataset.shownFor.split(" ").includes(task);
  }
}

// The box in a table's head ticks those of the page; the form sends them all at once.
function tickAll(head) {
  for (const box of head.closest("table").querySelectorAll("tbody input[type=checkbox]")) box.checked = head.checked;
}

function download(name, text) {
  const link = document.createElement("a");
  link.href = `data:text/plain;charset=utf-8,${encodeURIComponent(text)}`;
  link.download = name;
  link.click();
}

// A small text file into a field of the page.
async function readFile(input) {
  const [file] = input.files;
  if (!file) return;
  document.querySelector(input.dataset.name).value = file.name;
  document.querySelector(input.dataset.reads).value = await file.text();
  input.value = "";
}

// A file is sent as it is, a part after the other being read from disk; the answer is where it was put. One file after
// the other: the server takes few at a time.
async function upload(input) {
  const status = document.getElementById(input.dataset.status);
  const files = [...input.files];
  const lines = files.map(() => {
    const line = document.createElement("span"); // a line for each file
    line.className = "line";
    return line;
  });
  status.replaceChildren(...lines);
  input.value = "";
  for (const [index, file] of files.entries()) {
    const path = await sendFile(file, lines[index]);
    if (path) chooseFile(document.querySelector(input.dataset.upload), path);
  }
}

function sendFile(file, line) {
  return new Promise((resolve) => {
    const request = new XMLHttpRequest();
    request.open("PUT", `${root()}/uploads?name=${encodeURIComponent(file.name)}`);
    for (const [name, value] of Object.entries(csrfHeaders())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => {
      line.textContent = `${file.name}: ${Math.round((100 * event.loaded) / event.total)} %`;
    };
    request.onload = () => {
      let reply = {};
      try { reply = JSON.parse(request.responseText); } catch { reply = { error: request.responseText }; }
      line.textContent = reply.path ?? `${file.name}: ${reply.error ?? request.status}`;
      resolve(reply.path);
    };
    request.onerror = () => {
      line.textContent = `${file.name}: ${document.body.dataset.gone}`;
      resolve(undefined);
    };
    request.send(file);
  });
}

// In a field; among rows of data sets, in the first that is empty, else in a new one.
function chooseFile(target, path) {
  if (!target) return;
  let field = target;
  if (!("value" in target)) {
    const isEmpty = (row) => !row.querySelector("input").value;
    if (![...target.children].some(isEmpty)) addRow(`#${target.id}`);
    field = [...target.children].find(isEmpty).querySelector("input");
  }
  field.value = path;
  field.dispatchEvent(new Event("change", { bubbles: true }));
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.addRow) addRow(button.dataset.addRow);
  if ("removeRow" in button.dataset) removeRow(button);
  if (button.dataset.download) download(button.dataset.download, document.querySelector(button.dataset.from).textContent);
  if (button.dataset.copy) navigator.clipboard.writeText(document.querySelector(button.dataset.copy).textContent);
  if (button.id === "train-start" && "Notification" in window && Notification.permission === "default") {
    Notification.requestPermission();
  }
});

document.addEventListener("change", (event) => {
  if ("tickAll" in event.target.dataset) tickAll(event.target);
  if ("method" in event.target.dataset) showMethodFields();
  if (event.target.dataset.shows) showTaskFields();
  if ("submit" in event.target.dataset) event.target.form.requestSubmit();
  if (event.target.dataset.reads) readFile(event.target);
  if ("logAxis" in event.target.dataset) drawCharts(event.target.closest("[data-curves]"));
});

// What was said of a choice before is not left under a new one. Before htmx sends what the choice triggers.
document.addEventListener("change", (event) => {
  if (event.target.dataset.upload) { // no choice yet: that comes when the file is there
    event.stopPropagation();
    upload(event.target);
    return;
  }
  for (const place of document.querySelectorAll("[data-stale-after]")) {
    if (event.target.matches(place.dataset.staleAfter)) place.replaceChildren();
  }
}, true);

document.addEventListener("input", (event) => {
  if ("smoothing" in event.target.dataset) drawCharts(event.target.closest("[data-curves]"));
  if (event.target.id === "script") document.getElementById("script-name").value = ""; // no longer that file
});

function setUp() {
  showMethodFields();
  showTaskFields();
  connectLive();
  for (const box of document.querySelectorAll("[data-curves]")) if (!chartsOf.has(box)) { chartsOf.set(box, true); drawCharts(box); }
  for (const log of document.querySelectorAll(".log:not([data-scrolled])")) {
    log.dataset.scrolled = ""; // once: who reads further up is not moved
    log.scrollTop = log.scrollHeight;
  }
}

document.addEventListener("DOMContentLoaded", setUp);
document.addEventListener("htmx:afterSettle", setUp);
window.addEventListener("resize", () => document.querySelectorAll("[data-curves]").forEach(drawCharts));
// An error does not take the place of what was typed, or of a list: it stands below the button.
document.addEventListener("htmx:beforeSwap", ({ detail }) => {
  if (detail.xhr.status !== 422 || !detail.target?.matches("[data-keeps]")) return;
  const place = document.createElement("div");
  place.className = "error-place";
  const asker = detail.requestConfig.elt;
  if (asker.matches("form")) asker.append(place);
  else (asker.closest("p, li, .row, .choices, .table-tools") ?? asker).after(place);
  detail.target = place;
  detail.swapOverride = "innerHTML";
});
document.addEventListener("htmx:beforeRequest", ({ detail }) => {
  if (!detail.elt.matches("button, form")) return;
  for (const place of document.querySelectorAll(".error-place")) place.remove();
});
// A server that is gone, and an answer that is none, are said where the user looks.
document.addEventListener("htmx:responseError", (event) => {
  const notice = document.getElementById("notice");
  if (notice) notice.textContent = `${event.detail.xhr.status}: ${event.detail.xhr.responseText.slice(0, 300)}`;
  // What the place shows belongs to what was asked before.
  if (event.detail.target?.matches("[data-result], [data-stale-after]")) event.detail.target.replaceChildren();
});
document.addEventListener("htmx:sendError", () => {
  const notice = document.getElementById("notice");
  if (notice && !("gone" in notice.dataset)) {
    notice.dataset.gone = "";
    notice.textContent = document.body.dataset.gone;
  }
});
document.addEventListener("htmx:afterOnLoad", () => {
  const notice = document.getElementById("notice");
  if (notice && "gone" in notice.dataset) {
    delete notice.dataset.gone;
    notice.textContent = "";
  }
});
