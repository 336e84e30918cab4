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
  tools.append(makeTool(chats.dataset.copyLabel, () => navigator.clipboard.writeText(message.text)));
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
      problem.innerHTML = await reply.text();
      return;
    }
    form.reset();
    let failures = 0;
    await readLines(reply.body, (event) => { failures += showEvent(event, prompt); });
    // A message that nobody answered goes back to where it was written.
    if (failures === document.querySelectorAll("[data-side]").length) form.elements.prompt.value = prompt;
  } catch (error) {
    problem.textContent = String(error);
  } finally {
    chatRequest = false;
    setBusy(false);
    form.elements.action.value = "send";
  }
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

// 1 if the side failed.
function showEvent(event, prompt) {
  const side = sideOf(event.side);
  const place = side.querySelector("[data-messages]");
  const known = JSON.parse(place.dataset.messages);
  if (event.status) side.querySelector("[data-status]").textContent = event.status;
  if (event.error) {
    const box = document.createElement("div");
    box.className = "callout bad";
    box.textContent = event.error;
    document.getElementById("chat-problem").append(box);
    showMessages(side, known);
    side.querySelector("[data-status]").textContent = "";
    return 1;
  }
  if (event.messages) {
    place.dataset.messages = JSON.stringify(event.messages);
    showMessages(side, event.messages);
  } else {
    showMessages(side, [...known, { role: "user", text: prompt }], event.text ?? "");
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
