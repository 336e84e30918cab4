// A shared worker: one connection to the server for all windows of this browser, whatever number shows a job. Over
// HTTP/1.1 a browser has six connections to a server; a stream for each window would leave none for the page itself.
"use strict";

const SILENCE_MS = 150_000; // a window in the background may speak once a minute
const base = self.location.href.replace(/\/static\/live\.js.*$/, "");
const windows = new Map(); // port -> { job, heard }
const latest = new Map(); // job -> Map of key -> message, for windows that come later
let source = null;
let shown = "";
let lang = "";

self.onconnect = ({ ports: [port] }) => {
  port.onmessage = ({ data }) => watch(port, data);
};

function watch(port, message) {
  if (message.lang) lang = message.lang;
  const before = windows.get(port);
  if (!message.job) windows.delete(port);
  else windows.set(port, { job: message.job, heard: Date.now() });
  if (message.job && before?.job !== message.job) {
    for (const each of latest.get(message.job)?.values() ?? []) port.postMessage(each);
  }
  connect();
}

function connect() {
  const jobs = [...new Set([...windows.values()].map(({ job }) => job))].sort();
  const wanted = JSON.stringify([jobs, lang]); // the server writes in the language that the browser has now
  if (wanted === shown && (!jobs.length || source?.readyState !== EventSource.CLOSED)) return;
  source?.close();
  source = null;
  shown = wanted;
  latest.clear();
  if (!jobs.length) return;
  const query = jobs.map((job) => `id=${encodeURIComponent(job)}`).join("&");
  source = new EventSource(`${base}/jobs/live?${query}`);
  source.onmessage = (event) => pass(JSON.parse(event.data));
}

function pass(message) {
  const { job, key, kind } = message;
  if (!latest.has(job)) latest.set(job, new Map());
  latest.get(job).set(key, message);
  for (const [port, each] of windows) {
    if (each.job !== job) continue;
    port.postMessage(message);
    if (kind === "end") windows.delete(port);
  }
  if (kind === "end") connect();
}

// Windows that crashed are forgotten; after an answer that is no stream (a proxy whose server starts) it is tried again.
setInterval(() => {
  for (const [port, { heard }] of windows) if (Date.now() - heard > SILENCE_MS) windows.delete(port);
  connect();
}, 5_000);
