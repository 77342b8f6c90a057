"use strict";

// Two things: timers count down, and what has changed on the worker is taken over into the page.
// The worker renders (and escapes) everything; this file only puts its HTML in place.

const main = document.querySelector("main");
const liveButton = document.getElementById("live");
const served = new Map(); // part -> its HTML as the worker sent it

let clockAhead = 0; // the worker's clock minus this machine's, in ms
let lostContact = false;

function readClock(page) {
  clockAhead = Number(page.body.dataset.now) - Date.now();
}

// --- Countdowns ---------------------------------------------------------------------------------

const pad = (number) => String(number).padStart(2, "0");

function inWords(ms) {
  const s = Math.ceil(ms / 1000);
  if (s <= 0) return "due now";
  if (s < 60) return `in ${s} s`;
  if (s < 3600) return `in ${Math.floor(s / 60)} m ${pad(s % 60)} s`;
  if (s < 86400) return `in ${Math.floor(s / 3600)} h ${pad(Math.floor((s % 3600) / 60))} m`;
  return `in ${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

function countDown() {
  const now = Date.now() + clockAhead;
  for (const timer of document.querySelectorAll(".countdown")) {
    const left = Number(timer.dataset.due) - now;
    const words = inWords(left);
    if (timer.textContent !== words) timer.textContent = words;
    timer.classList.toggle("soon", left < 60000);
  }
}

// --- Live ---------------------------------------------------------------------------------------

const isLive = () => liveButton.getAttribute("aria-pressed") === "true";

function sayContact(lost) {
  lostContact = lost;
  document.body.classList.toggle("stale", lost);
  liveButton.textContent = lost ? "No contact" : isLive() ? "Live" : "Paused";
}

// A focused element is found again in the new HTML by its id, its address or its <details>.
function traceOf(element) {
  if (element.id) return `#${CSS.escape(element.id)}`;
  if (element.matches("summary") && element.parentElement.id) {
    return `#${CSS.escape(element.parentElement.id)} > summary`;
  }
  const href = element.getAttribute("href");
  return href ? `[href="${CSS.escape(href)}"]` : null;
}

function takeOver(old, html) {
  const open = [...old.querySelectorAll("details[open][id]")].map((item) => item.id);
  const focused = old.contains(document.activeElement) ? traceOf(document.activeElement) : null;
  old.innerHTML = html;
  for (const id of open) {
    const details = document.getElementById(id);
    if (details) details.open = true;
  }
  if (focused) old.querySelector(focused)?.focus({ preventScroll: true });
}

function takeOverPage(text) {
  const page = new DOMParser().parseFromString(text, "text/html");
  readClock(page);
  for (const [part, html] of served) {
    const fresh = page.querySelector(`[data-part="${part}"]`)?.innerHTML;
    if (fresh === undefined || fresh === html) continue;
    served.set(part, fresh);
    takeOver(document.querySelector(`[data-part="${part}"]`), fresh);
  }
  const offset = page.querySelector("main").dataset.offset;
  if (offset !== undefined) main.dataset.offset = offset;
  countDown();
}

async function hasChanged() {
  if (!main.dataset.watch) return true;
  const answer = await fetch(main.dataset.watch, { headers: { Accept: "application/json" } });
  if (!answer.ok) return true;
  return String((await answer.json()).journalOffset) !== main.dataset.offset;
}

async function refresh() {
  if (!(await hasChanged())) return;
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (answer.status === 401) location.reload();
  const isError = "whole" in main.dataset;
  if (isError && answer.ok) location.reload();
  else if (answer.ok) takeOverPage(await answer.text());
  else if (!isError) throw new Error(`the worker answered ${answer.status}`);
}

async function keepFresh() {
  if (isLive() && !document.hidden) {
    try {
      await refresh();
      if (lostContact) sayContact(false);
    } catch (error) {
      if (!lostContact) console.warn("agents_stream:", error.message);
      sayContact(true);
    }
  }
  setTimeout(keepFresh, Number(main.dataset.live));
}

// --- Start --------------------------------------------------------------------------------------

readClock(document);
for (const part of document.querySelectorAll("[data-part]")) {
  served.set(part.dataset.part, part.innerHTML);
}
countDown();
setInterval(countDown, 500);

if (main.dataset.live) {
  liveButton.hidden = false;
  liveButton.addEventListener("click", () => {
    liveButton.setAttribute("aria-pressed", String(!isLive()));
    sayContact(false);
  });
  setTimeout(keepFresh, Number(main.dataset.live));
}

document.addEventListener("keydown", (press) => {
  const search = document.querySelector('input[type="search"]');
  const isTyping = press.target.closest("input, select, textarea");
  if (press.key === "/" && search && !isTyping && !press.ctrlKey && !press.metaKey) {
    press.preventDefault();
    search.focus();
  }
});
