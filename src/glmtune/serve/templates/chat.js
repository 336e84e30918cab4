"use strict";
// A conversation with /v1/chat/completions. What a model writes is shown as text, never as markup.
const texts = JSON.parse(document.getElementById("texts").textContent);
const get = (id) => document.getElementById(id);
const say = (key) => texts[get("lang-zh").checked ? "zh" : "en"]["serve.chat." + key];
let messages = [], controller = null;

const translate = () => {
  document.documentElement.lang = get("lang-zh").checked ? "zh" : "en";
  get("prompt").placeholder = say("prompt");
  get("prompt").setAttribute("aria-label", say("prompt"));
  for (const element of document.querySelectorAll("[data-key]")) element.textContent = say(element.dataset.key);
};
const create = (tag, name, text) => {
  const element = document.createElement(tag);
  element.className = name;
  element.textContent = text || "";
  return element;
};
// An element whose text follows the language.
const createLabel = (tag, key) => {
  const element = create(tag, "", say(key));
  element.dataset.key = key;
  return element;
};
// Keep the end of the page in sight, unless the reader has scrolled up.
const follow = (change) => {
  const isAtEnd = window.innerHeight + window.scrollY >= document.body.scrollHeight - 120;
  change();
  if (isAtEnd) window.scrollTo(0, document.body.scrollHeight);
};
const showProblem = (text) => {
  get("problem").textContent = text || "";
  get("problem").hidden = !text;
};
const makeHeaders = () => {
  const headers = { "Content-Type": "application/json" };
  if (get("key").value) headers.Authorization = "Bearer " + get("key").value;
  return headers;
};

async function explain(response) {
  if (response.status === 401) {
    get("settings").open = true;
    get("key").focus();
    return say("need_key");
  }
  try {
    return (await response.json()).error.message;
  } catch {
    return `HTTP ${response.status}`;
  }
}

async function loadModels() {
  try {
    const response = await fetch("v1/models", { headers: makeHeaders() });
    if (!response.ok) return showProblem(await explain(response));
    const chosen = get("model").value;
    get("model").replaceChildren(...(await response.json()).data.map((model) => new Option(model.id, model.id)));
    if (chosen) get("model").value = chosen;
    showProblem("");
  } catch {
    showProblem(say("unreachable"));
  }
}

function addMessage(role, text) {
  get("empty").hidden = true;
  const element = create("div", "message " + role);
  const keys = { user: "you", tool: "result" };
  element.append(keys[role] ? createLabel("b", keys[role]) : create("b", "", get("model").value));
  element.append(create("div", "text", text), create("div", "meta"));
  get("log").append(element);
  window.scrollTo(0, document.body.scrollHeight);
  return element;
}

function readBody() {
  const body = { model: get("model").value, stream: true, stream_options: { include_usage: true } };
  body.temperature = Number(get("temperature").value);
  body.top_p = Number(get("top_p").value) || 1;
  if (get("max_tokens").value) body.max_tokens = Number(get("max_tokens").value);
  const system = get("system").value.trim();
  body.messages = [...(system ? [{ role: "system", content: system }] : []), ...messages];
  if (get("tools").value.trim()) {
    body.tools = JSON.parse(get("tools").value);
    if (!Array.isArray(body.tools)) throw new SyntaxError("not a list");
  }
  return body;
}

// The values of server-sent events, one line each.
async function* readEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    pending += value;
    const lines = pending.split("\n");
    pending = lines.pop();
    for (const line of lines)
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
  }
}

async function answer() {
  showProblem("");
  let body;
  try {
    body = readBody();
  } catch {
    return showProblem(say("bad_tools"));
  }
  const element = addMessage("assistant", ""), text = element.querySelector(".text");
  const reply = { role: "assistant", content: "" };
  const start = performance.now();
  let usage = null, end = "";
  controller = new AbortController();
  setWorking(element, true);
  try {
    const request = { method: "POST", headers: makeHeaders(), body: JSON.stringify(body), signal: controller.signal };
    const response = await fetch("v1/chat/completions", request);
    if (!response.ok) throw new Error(await explain(response));
    for await (const chunk of readEvents(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      usage = chunk.usage || usage;
      const choice = chunk.choices[0];
      if (!choice) continue;
      if (choice.delta.content) {
        reply.content += choice.delta.content;
        follow(() => (text.textContent = reply.content));
      }
      if (choice.delta.tool_calls) reply.tool_calls = choice.delta.tool_calls.map(({ index, ...call }) => call);
      if (choice.finish_reason === "length") end = say("length");
    }
  } catch (error) {
    if (error.name === "AbortError") end = say("stopped");
    else showProblem(error instanceof TypeError ? say("unreachable") : error.message);
  }
  setWorking(element, false);
  controller = null;
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  const counts = usage && say("usage").replace("{prompt}", usage.prompt_tokens)
    .replace("{reply}", usage.completion_tokens).replace("{seconds}", seconds);
  element.querySelector(".meta").textContent = [counts, end].filter(Boolean).join(" · ");
  if (!reply.content && !reply.tool_calls) {
    // Nothing came: the question can be sent again.
    element.remove();
    return;
  }
  messages.push(reply);
  if (reply.tool_calls) showCall(element, reply.tool_calls[0]);
}

function showCall(element, call) {
  const box = create("div", "call"), result = create("textarea", ""), button = createLabel("button", "send_result");
  result.rows = 2;
  result.setAttribute("aria-label", say("result"));
  button.type = "button";
  button.onclick = () => {
    button.disabled = result.disabled = true;
    messages.push({ role: "tool", tool_call_id: call.id, content: result.value });
    addMessage("tool", result.value);
    answer();
  };
  box.append(createLabel("b", "call"), create("pre", "", `${call.function.name}(${call.function.arguments})`));
  box.append(result, button);
  follow(() => element.append(box));
}

function setWorking(element, isWorking) {
  element.classList.toggle("working", isWorking);
  get("send").hidden = isWorking;
  get("stop").hidden = !isWorking;
}

get("form").onsubmit = (event) => {
  event.preventDefault();
  const prompt = get("prompt").value.trim();
  if (!prompt || controller) return;
  // A question that got no answer is replaced: roles take turns.
  if (messages.length && messages[messages.length - 1].role === "user") {
    messages.pop();
    get("log").lastElementChild.remove();
  }
  messages.push({ role: "user", content: prompt });
  addMessage("user", prompt);
  get("prompt").value = "";
  answer();
};
get("prompt").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    get("form").requestSubmit();
  }
};
get("stop").onclick = () => controller && controller.abort();
get("clear").onclick = () => {
  if (controller) controller.abort();
  messages = [];
  get("log").replaceChildren(get("empty"));
  get("empty").hidden = false;
  showProblem("");
};
get("key").value = sessionStorage.getItem("glmtune-key") || "";
get("key").onchange = () => {
  sessionStorage.setItem("glmtune-key", get("key").value);
  loadModels();
};
for (const radio of document.getElementsByName("lang")) radio.onchange = translate;
translate();
loadModels();
