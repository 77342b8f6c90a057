// The page of the customer. What others wrote reaches the document as text only (textContent);
// the content security policy forbids everything else.

const TICK_MS = 200;
const MAX_LINES_SHOWN = 500;
const WARM_SHARE = 0.35;
const HOT_SHARE = 0.12;
const NEAR_BOTTOM_PX = 80;

const TIMER_LABELS = {
  "data_collection.reply": "Waiting for your answer",
  "data_collection.promos": "Until the promos",
  "promos.reply": "Waiting for your choice",
};

const byId = (id) => document.getElementById(id);
const conversationId = decoded(location.pathname.split("/").slice(2).join("/"));
const lines = byId("lines");

const state = {
  sessionId: new URLSearchParams(location.search).get("session"),
  clockOffsetMs: 0,
  timers: new Map(),
};

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function chatPath(conversation, session) {
  const query = session ? `?session=${encodeURIComponent(session)}` : "";
  return `/chat/${encodeURIComponent(conversation)}${query}`;
}

function clockTime(atMs) {
  return new Date(atMs).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
}

function initials(id) {
  const words = id.split(/[^\p{L}\p{N}]+/u).filter(Boolean);
  return ((words.at(0)?.[0] ?? "?") + (words.length > 1 ? words.at(-1)[0] : "")).toUpperCase();
}

// An id for a message. crypto.randomUUID is missing where the page is not on localhost.
function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function post(path, body) {
  let answer;
  try {
    answer = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
  } catch {
    throw new Error("The sandbox does not answer.");
  }
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(told.error?.message ?? `The sandbox answered ${answer.status}.`);
  return told;
}

// ---- lines ----

function isNearBottom() {
  const { scrollHeight, scrollTop, clientHeight } = byId("scroll");
  return scrollHeight - scrollTop - clientHeight < NEAR_BOTTOM_PX;
}

function scrollDown() {
  byId("scroll").scrollTop = byId("scroll").scrollHeight;
}

function lineOf(author, id) {
  return [...lines.children].find((item) => item.dataset.id === id && item.dataset.from === author);
}

function showLine(line, className = "fresh") {
  const follow = isNearBottom() || line.from === "customer";
  byId("hello")?.remove();
  const known = lineOf(line.from, line.id);
  if (known) {
    known.classList.remove("sending", "failed");
    known.querySelector(".meta").textContent = clockTime(line.at);
    return known;
  }
  const item = element("li", `line ${line.from} ${className}`);
  item.dataset.id = line.id;
  item.dataset.from = line.from;
  const author = { agent: "Agent: ", customer: "You: ", note: "Note: " }[line.from];
  item.append(element("span", "hidden", author), element("span", "text", line.text));
  item.append(element("span", "meta", clockTime(line.at)));
  lines.append(item);
  while (lines.children.length > MAX_LINES_SHOWN) lines.firstElementChild.remove();
  if (follow) scrollDown();
  return item;
}

function showHello(text) {
  if (lines.children.length && !byId("hello")) return;
  byId("hello")?.remove();
  const hello = element("li", "hello", text);
  hello.id = "hello";
  lines.append(hello);
}

// ---- what the customer says ----

async function say(content, messageId) {
  const item = showLine({ id: messageId, at: now(), from: "customer", text: content }, "sending");
  const meta = item.querySelector(".meta");
  meta.textContent = "sending…";
  try {
    const body = { conversationId, sessionId: state.sessionId, content, messageId };
    const { line } = await post("/api/chat/messages", body);
    showLine(line);
  } catch (problem) {
    item.classList.remove("sending");
    item.classList.add("failed");
    meta.textContent = `Not sent: ${problem.message}`;
    const retry = element("button", "", "Try again");
    retry.type = "button";
    // The same messageId: should the first have arrived after all, the second is no second one.
    retry.addEventListener("click", () => {
      item.classList.remove("failed");
      item.classList.add("sending");
      byId("content").focus();
      say(content, messageId);
    });
    meta.append(retry);
  }
}

function submitLine(event) {
  event.preventDefault();
  const field = byId("content");
  const content = field.value.trim();
  if (!content) return;
  if (!state.sessionId) {
    showBanner("No session of this conversation is known yet: start one from the list.");
    return;
  }
  field.value = "";
  field.focus();
  say(content, newId());
}

// ---- timers ----

function now() {
  return Date.now() + state.clockOffsetMs;
}

function timerLabel(name) {
  return TIMER_LABELS[name] ?? (name.startsWith("retry:") ? "Next try of a tool" : name);
}

function remaining(leftMs) {
  if (leftMs <= 0) return "due";
  if (leftMs < 10_000) return `${(Math.ceil(leftMs / 100) / 10).toFixed(1)} s`;
  const seconds = Math.ceil(leftMs / 1000);
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  const tail = String(seconds % 60).padStart(2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${tail}` : `${minutes}:${tail}`;
}

function addPill(name) {
  const pill = element("span", "pill");
  pill.setAttribute("role", "timer");
  pill.title = name;
  pill.append(element("span", "name", timerLabel(name)), element("span", "left"));
  const bar = element("span", "bar");
  bar.setAttribute("aria-hidden", "true");
  pill.append(bar);
  const item = element("li");
  item.append(pill);
  byId("timers").append(item);
  return pill;
}

function showTimers(deadlines) {
  const running = new Set(deadlines.map(({ name, generation }) => `${generation} ${name}`));
  for (const [key, timer] of state.timers) {
    if (!running.has(key)) {
      timer.pill.parentElement.remove();
      state.timers.delete(key);
    }
  }
  for (const { name, generation, dueAt, seenAt } of deadlines) {
    const key = `${generation} ${name}`;
    const pill = state.timers.get(key)?.pill ?? addPill(name);
    state.timers.set(key, { pill, dueAtMs: Date.parse(dueAt), seenAtMs: seenAt });
  }
  byId("no-timers").hidden = state.timers.size > 0;
  tick();
}

function tick() {
  const atMs = now();
  for (const { pill, dueAtMs, seenAtMs } of state.timers.values()) {
    const leftMs = dueAtMs - atMs;
    const share = Math.min(1, Math.max(0, leftMs / Math.max(1, dueAtMs - seenAtMs)));
    pill.querySelector(".left").textContent = remaining(leftMs);
    pill.querySelector(".bar").style.setProperty("--share", share.toFixed(4));
    pill.classList.toggle("warm", share < WARM_SHARE && share >= HOT_SHARE);
    pill.classList.toggle("hot", share < HOT_SHARE);
  }
}

// ---- the session and the list ----

function showBanner(text) {
  byId("banner").hidden = !text;
  byId("banner").textContent = text ?? "";
}

function showSession({ session, problem, now: serverNowMs }) {
  state.clockOffsetMs = serverNowMs - Date.now();
  if (problem !== undefined) showBanner(problem);
  if (session === undefined || (problem && !session)) return;
  if (!session) {
    byId("room-state").textContent = "No session yet";
    showTimers([]);
    return;
  }
  state.sessionId = session.sessionId;
  showWho(session.contactId);
  const parts = [session.status, session.mode].filter(Boolean);
  if (session.pendingCommands) parts.push(`${session.pendingCommands} tool call under way`);
  byId("room-state").textContent = parts.join(" · ");
  showTimers(session.deadlines);
}

function showWho(contactId) {
  const name = contactId ?? conversationId;
  byId("room-title").textContent = name;
  byId("room-title").title = conversationId;
  byId("avatar").textContent = initials(name);
}

function conversationLink(item) {
  const name = item.contactId ?? item.conversationId;
  const link = element("a");
  link.title = item.conversationId;
  link.href = chatPath(item.conversationId, item.sessionId);
  if (item.conversationId === conversationId) link.setAttribute("aria-current", "page");
  const avatar = element("span", "avatar", initials(name));
  avatar.setAttribute("aria-hidden", "true");
  const who = element("span");
  const prefix = item.lastFrom === "customer" ? "You: " : "";
  who.append(element("strong", "", name));
  who.append(element("span", "preview quiet", prefix + item.preview));
  link.append(avatar, who);
  if (item.lastAt) link.append(element("time", "", clockTime(item.lastAt)));
  return link;
}

function showConversations(items) {
  // The lines that were there before have been shown by now: only new ones are read out.
  byId("scroll").setAttribute("aria-live", "polite");
  const list = byId("conversations");
  const focused = list.contains(document.activeElement) ? document.activeElement.href : null;
  list.replaceChildren(
    ...items.map((item) => {
      const entry = element("li");
      entry.append(conversationLink(item));
      return entry;
    }),
  );
  byId("no-conversations").hidden = items.length > 0;
  if (focused) [...list.querySelectorAll("a")].find((link) => link.href === focused)?.focus();
}

async function startConversation(event) {
  event.preventDefault();
  const form = event.currentTarget;
  const button = form.querySelector("button");
  const problem = byId("start-problem");
  problem.hidden = true;
  button.disabled = true;
  try {
    const contactId = form.contact.value.trim() || null;
    const made = await post("/api/chat/start", { flow: form.flow.value, contactId });
    location.assign(chatPath(made.conversationId, made.sessionId));
  } catch (error) {
    problem.textContent = error.message;
    problem.hidden = false;
    button.disabled = false;
  }
}

// ---- the stream ----

function openStream() {
  const query = new URLSearchParams();
  if (conversationId) query.set("conversation", conversationId);
  if (state.sessionId) query.set("session", state.sessionId);
  const stream = new EventSource(`/api/chat/stream?${query}`);
  const on = (name, show) => stream.addEventListener(name, (event) => show(JSON.parse(event.data)));
  on("line", (line) => showLine(line));
  on("session", showSession);
  on("conversations", showConversations);
  on("cleared", () => {
    lines.replaceChildren();
    showHello("The books were emptied.");
  });
  stream.addEventListener("error", () => {
    showBanner("The sandbox does not answer. Trying again…");
    // A browser gives up after an answer that is no stream (too many pages); we do not.
    if (stream.readyState === EventSource.CLOSED) setTimeout(openStream, 3000);
  });
  stream.addEventListener("open", () => showBanner(null));
}

function setUp() {
  byId("start").addEventListener("submit", startConversation);
  if (conversationId) {
    document.body.dataset.view = "room";
    document.title = `${conversationId} · Chat sandbox`;
    showWho(null);
    byId("compose").addEventListener("submit", submitLine);
    byId("content").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submitLine(event);
    });
    showHello("The agent will write here. Answer before the timer ends, or let it run out.");
    setInterval(tick, TICK_MS);
  }
  openStream();
}

setUp();
