// The chat: a message is sent, and the replies come as lines of JSON (see chat_tab.py).
"use strict";

let chatRequest = false;

const sideOf = (number) => document.querySelector(`[data-side="${number}"]`);

function showMessages(side, messages, piece) {
  const chats = document.getElementById("chats");
  const place = side.querySelector("[data-messages]");
  place.replaceChildren(...messages.map((message) => makeMessage(message, chats)));
  if (piece !== undefined) place.append(makeMessage({ role: "assistant", text: piece || "…" }, chats));
  if (!messages.length && piece === undefined) {
    const note = document.createElement("p");
    note.className = "note";
    note.textContent = chats.dataset.empty;
    place.append(note);
  }
  place.scrollTop = place.scrollHeight;
}

function makeMessage(message, chats) {
  const box = document.createElement("div");
  box.className = `message ${message.role}`;
  const body = document.createElement("div");
  body.className = "body";
  // The server made this markup from Markdown, without raw HTML, pictures or links.
  if (message.html !== undefined) body.innerHTML = message.html;
  else body.textContent = message.text;
  box.append(body);
  if (message.index === undefined) return box;
  const tools = document.createElement("div");
  tools.className = "tools";
  tools.append(makeTool(chats.dataset.copyLabel, () => copyText(message.text)));
  if (message.role === "user") tools.append(makeTool(chats.dataset.edit, () => editMessage(message)));
  box.append(tools);
  return box;
}

function makeTool(label, action) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "plain";
  button.textContent = label;
  button.addEventListener("click", action);
  return button;
}

function editMessage(message) {
  const form = document.getElementById("chat-form");
  form.elements.action.value = "edit";
  form.elements.index.value = message.index;
  form.elements.prompt.value = message.text;
  form.elements.prompt.focus();
}

async function sendMessage(action) {
  const form = document.getElementById("chat-form");
  const chats = document.getElementById("chats");
  if (chatRequest) return;
  const data = new URLSearchParams([...new FormData(form), ...new FormData(document.getElementById("chat-settings"))]);
  if (action) data.set("action", action);
  const problem = document.getElementById("chat-problem");
  problem.replaceChildren();
  chatRequest = true;
  setBusy(true);
  const prompt = data.get("prompt");
  try {
    const reply = await fetch(chats.dataset.send, {
      method: "POST",
      body: data,
      headers: { "X-CSRF-Token": document.body.dataset.csrf },
    });
    if (!reply.ok) {
      const text = await reply.text();
      // Errors of a route are markup of ours; refusals and failures of the server are plain text.
      if (reply.headers.get("Content-Type")?.startsWith("text/html")) problem.innerHTML = text;
      else problem.textContent = text;
      return;
    }
    if (data.get("action") !== "again") form.reset();
    form.elements.action.value = "send";
    let failures = 0;
    await readLines(reply.body, (event) => { failures += showEvent(event, data); });
    // A message that nobody answered goes back to where it was written.
    if (failures === document.querySelectorAll("[data-side]").length) putBack(form, prompt);
  } catch (error) {
    problem.textContent = `${document.body.dataset.gone} (${error})`;
    putBack(form, prompt);
  } finally {
    chatRequest = false;
    setBusy(false);
  }
}

function putBack(form, prompt) {
  if (!form.elements.prompt.value) form.elements.prompt.value = prompt;
}

async function readLines(stream, handle) {
  const decoder = new TextDecoder();
  let rest = "";
  for (const reader = stream.getReader(); ;) {
    const { done, value } = await reader.read();
    rest += decoder.decode(value, { stream: !done });
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines) if (line) handle(JSON.parse(line));
    if (done) return;
  }
}

// What stays of a side's messages while the reply to a request comes, and the user's new message, if it has one.
function messagesBefore(known, data) {
  if (data.get("action") === "again") {
    const last = known.findLastIndex((message) => message.role === "user");
    return known.slice(0, last + 1);
  }
  const rest = data.get("action") === "edit" ? known.filter((message) => message.index < Number(data.get("index"))) : known;
  return [...rest, { role: "user", text: data.get("prompt") }];
}

// 1 if the side failed.
function showEvent(event, data) {
  const side = sideOf(event.side);
  const place = side.querySelector("[data-messages]");
  const known = JSON.parse(place.dataset.messages);
  if (event.status) side.querySelector("[data-status]").textContent = event.status;
  if (event.error) {
    document.getElementById("chat-problem").insertAdjacentHTML("beforeend", event.error);
    showMessages(side, known);
    side.querySelector("[data-status]").textContent = "";
    return 1;
  }
  if (event.messages) {
    place.dataset.messages = JSON.stringify(event.messages);
    showMessages(side, event.messages);
  } else {
    showMessages(side, messagesBefore(known, data), event.text ?? "");
  }
  return 0;
}

function setBusy(isBusy) {
  document.getElementById("chat-send").disabled = isBusy;
  document.getElementById("chat-again").disabled = isBusy;
  document.getElementById("chat-stop").disabled = !isBusy;
}

document.addEventListener("DOMContentLoaded", () => {
  const form = document.getElementById("chat-form");
  if (!form) return;
  for (const side of document.querySelectorAll("[data-side]")) {
    showMessages(side, JSON.parse(side.querySelector("[data-messages]").dataset.messages));
  }
  // What was typed and not sent outlives a reload.
  const key = `glmtune ${document.getElementById("chats").dataset.send}`;
  form.elements.prompt.value = sessionStorage.getItem(key) ?? "";
  for (const name of ["input", "reset"]) {
    form.addEventListener(name, () => setTimeout(() => sessionStorage.setItem(key, form.elements.prompt.value)));
  }
  form.addEventListener("submit", (event) => { event.preventDefault(); sendMessage(); });
  form.elements.prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); sendMessage(); }
  });
  document.getElementById("chat-again").addEventListener("click", () => sendMessage("again"));
  setBusy(false); // the buttons are of use from now on
  document.getElementById("chat-stop").addEventListener("click", () => fetch(
    document.getElementById("chats").dataset.send.replace(/send$/, "stop"),
    { method: "POST", headers: { "X-CSRF-Token": document.body.dataset.csrf } },
  ));
});
