// The page on which people judge.  An answer is taken at once, the next item stands ready in the page, and what was answered goes
// to the server behind the scenes (outbox.mjs).  Without this script the same forms work by themselves.

import { Card } from "./card.mjs";
import { Outbox } from "./outbox.mjs";

const AHEAD = 2, IDLE = 30, QUICK = 3, PAUSE = 45 * 60, TOAST = 5000; // items; seconds; milliseconds
const work = document.querySelector("#work"), slot = document.querySelector("#slot"), toast = document.querySelector("#toast");
const { project, person, csrf, single } = work.dataset;
const words = JSON.parse(work.dataset.words);
const say = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);

let card = null; // on the screen
let ready = []; // elements that come next
let finished = false; // the server has nothing more for this person
let fetching = null;
let stale = false; // something was sent while a fetch was on its way: what it brings is older than that
const sent = new Map(); // "lease.round" -> element: on the way to the server, or just stored
const done = []; // leases, the newest last: what undo takes

// -- active time: what lies between two signs of life counts, up to IDLE seconds

const active = { seconds: 0, worked: 0, last: performance.now() };
function alive() {
  const now = performance.now(), passed = document.hidden ? 0 : Math.min((now - active.last) / 1000, IDLE);
  active.last = now; active.seconds += passed; active.worked += passed;
  if (active.worked > PAUSE) { active.worked = 0; tell(words.pause); }
}
for (const sign of ["keydown", "pointermove", "pointerdown", "scroll", "wheel", "touchstart", "visibilitychange"]) {
  document.addEventListener(sign, alive, { passive: true, capture: true });
}

// -- what is said at the bottom

let toastTimer;
function tell(text, { undo = false } = {}) {
  const line = document.createElement("div");
  line.append(text);
  if (undo) {
    const button = document.createElement("button");
    button.textContent = words.undo;
    button.addEventListener("click", takeBack);
    line.append(button);
  }
  toast.replaceChildren(line);
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => toast.replaceChildren(), TOAST);
}

// -- to the server

let leaving = false;
function signIn() {
  if (!leaving) location.assign(`/signin?next=${encodeURIComponent(location.pathname)}`);
  leaving = true;
}

const outbox = new Outbox(person, csrf, {
  onCount: (count, stuck = false) => { if (stuck && count) tell(say(words.waiting, { count })); },
  onSession: (status) => {
    if (status === 401) signIn();
    else if (sessionStorage.getItem("reloaded") !== csrf) { sessionStorage.setItem("reloaded", csrf); location.reload(); }
  },
  onAnswer: (entry, right, answer) => {
    const element = sent.get(entry.id);
    if (!right) {
      tell(say(words.refused, { message: answer.error?.message ?? "?" }));
      if (element) { sent.delete(entry.id); if (card) ready.unshift(card.element); put(element); }
      return;
    }
    if (answer.status && answer.status !== "stored") tell(words[`status.${answer.status}`]);
    else if (answer.reveal?.length) tell(`${words.sent} ${answer.reveal.join(" · ")}`, { undo: true });
  },
});

function send(path, body, note) {
  const entry = { id: card.id, path, body: body.toString() };
  sent.set(card.id, card.element);
  done.push(card.lease);
  card.dropDraft();
  tell(active.seconds < QUICK && note === words.sent ? `${note} ${words.quick}` : note, { undo: true });
  next();
  outbox.add(entry).then(fetchMore);
}

function submit() {
  const chat = card.form.querySelector("a[href^='/chat/']");
  if (chat) return chat.click(); // a conversation is had on its own page
  const fault = card.fault();
  if (fault) {
    tell(fault.message);
    fault.element.scrollIntoView({ block: "center" });
    (fault.element.matches("textarea") ? fault.element : fault.element.querySelector("input, textarea"))?.focus();
    return;
  }
  alive();
  card.form.elements.seconds.value = active.seconds.toFixed(1);
  if (single) { card.dropDraft(); card.form.submit(); return; }
  send(new URL(card.form.action).pathname, new URLSearchParams(new FormData(card.form)), words.sent);
}

function skip(reason) {
  if (single) return;
  const note = card.form.elements.skip_note.value;
  send(`${new URL(card.form.action).pathname}/skip`, new URLSearchParams({ skip_reason: reason, skip_note: note }), words.skipped);
}

async function takeBack() {
  await outbox.flush();
  if (outbox.all().length) return; // not sent yet: it cannot be taken back yet either
  const lease = done.pop() ?? "";
  const response = await fetch(`/annotate/${project}/undo`, { method: "POST", body: new URLSearchParams({ lease }), headers: {
    "accept": "application/json", "x-csrf": csrf } }).catch(() => null);
  if (response?.status === 401) return signIn();
  const answer = await response?.json();
  if (!response?.ok) return tell(answer?.error?.message ?? words.nothing);
  if (card) ready.unshift(card.element);
  ready = ready.filter((each) => each.dataset.lease !== answer.lease);
  put(parsed(answer.html));
  tell(words.undone);
}

// -- the next item

function parsed(html) {
  const template = document.createElement("template");
  template.innerHTML = html; // made by our own server, where every text is escaped
  return template.content.querySelector(".card");
}

function next() {
  const element = ready.shift();
  if (element) return put(element);
  card = null;
  slot.replaceChildren(Object.assign(document.createElement("p"), { textContent: words.loading, className: "panel" }));
}

function put(element) {
  slot.replaceChildren(element);
  card = element.card ??= new Card(element, words, person);
  active.seconds = 0; active.last = performance.now();
  scrollTo(0, 0);
  element.focus({ preventScroll: true });
  sizes.disconnect();
  for (const each of slot.querySelectorAll(".bar, .prompt")) sizes.observe(each);
}

/** The bar stays in sight where it takes less than half of the window, the prompt where it takes less than a quarter. */
function stick() {
  const bar = slot.querySelector(".bar"), prompt = slot.querySelector(".prompt");
  bar?.classList.toggle("stick", bar.offsetHeight < innerHeight * 0.45);
  prompt?.classList.toggle("stick", prompt.offsetHeight < innerHeight * 0.22);
}

const sizes = new ResizeObserver(stick);

function fetchMore() {
  if (single || leaving) return fetching;
  if (fetching) stale = true;
  fetching ??= load().finally(() => {
    fetching = null;
    if (stale) fetchMore();
    else if (!card && !finished) setTimeout(fetchMore, 300);
  });
  return fetching;
}

async function load() {
  stale = false;
  const response = await fetch(`/annotate/${project}/next`, { headers: { "accept": "application/json" } }).catch(() => null);
  if (response?.status === 401) return signIn();
  if (!response?.ok) return new Promise((wait) => setTimeout(wait, 3000));
  const offer = await response.json();
  const here = new Set([card?.id, ...ready.map(idOf), ...sent.keys()]);
  ready.push(...offer.items.map((item) => parsed(item.html)).filter((element) => !here.has(idOf(element))));
  ready.length = Math.min(ready.length, AHEAD + 2);
  document.querySelector("#progress").textContent = say(offer.left === null ? words.today : words.today_left, offer);
  document.querySelector("#batch").textContent = offer.batch;
  finished = Boolean(offer.reason) && !outbox.all().length;
  if (!card && ready.length) next();
  else if (!card && finished) location.assign(`/annotate/${project}`);
}

const idOf = (element) => `${element.dataset.lease}.${element.dataset.round}`;

// -- keys and clicks

const panel = (id) => { const element = document.getElementById(id); element.open = !element.open; if (element.open) element.scrollIntoView({ block: "nearest" }); };
const skipper = () => slot.querySelector(".skipper");
const LETTERS = {
  s: () => { const box = skipper(); if (box) { box.open = true; box.querySelector("[data-act=skip]").focus(); } },
  u: takeBack, e: () => card.edit && card.takeText(true), f: () => card.toSafety(), r: () => card.openReason(),
  m: () => card.toggle("raw"), d: () => card.toggle("diff"), "[": () => card.tab(0), "]": () => card.tab(1), g: () => panel("guidelines"), "?": () => panel("help"),
  Backspace: () => card.back(),
};
const typing = (element) => element.matches?.("textarea:not(.source), select, input:not([type=radio], [type=checkbox])");
const keysOn = document.querySelector("#keys-on");
try { keysOn.checked = localStorage.getItem("keys") !== "off"; } catch { /* no storage: they are on */ }
keysOn.addEventListener("change", () => { try { localStorage.setItem("keys", keysOn.checked ? "on" : "off"); } catch { /* for this page only */ } });

document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.altKey || !(card || event.key === "u")) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); submit(); return; }
  if (event.ctrlKey || event.metaKey) return;
  if (event.key === "Escape") {
    if (skipper()?.open) skipper().open = false;
    document.activeElement.blur();
    return;
  }
  if (typing(event.target) || !keysOn.checked) return;
  if (skipper()?.open && /^[1-9]$/.test(event.key)) {
    event.preventDefault();
    skipper().querySelector(`[data-key="${event.key}"]`)?.click();
  } else if (/^[0-9]$/.test(event.key)) {
    event.preventDefault();
    if (card.press(event.key)) submit();
  } else if (event.key === "Enter") {
    if (event.target.closest("button, a, summary")) return;
    event.preventDefault();
    if (card.pass()) submit();
  } else if (LETTERS[event.key] && !event.repeat) {
    event.preventDefault();
    LETTERS[event.key]();
  }
});

let pointed = 0; // when a pointer last chose: arrow keys move through the buttons too, and must not send anything
slot.addEventListener("pointerup", (event) => { if (event.target.closest(".choice")) pointed = performance.now(); });
slot.addEventListener("change", (event) => {
  if (event.target.type === "radio" && performance.now() - pointed < 500 && card.advance(event.target.closest(".cell"))) submit();
});
slot.addEventListener("focusin", () => card?.update());
slot.addEventListener("submit", (event) => {
  const act = event.submitter?.dataset.act ?? "send";
  if (single && act !== "send") return;
  event.preventDefault();
  if (act === "undo") takeBack();
  else if (act === "skip") skip(event.submitter.value);
  else submit();
});
slot.addEventListener("click", (event) => {
  const act = event.target.closest("button[type=button]")?.dataset.act;
  if (act === "raw" || act === "diff") card.toggle(act);
  if (act === "tab") card.tab(event.target.closest("button").dataset.tab);
  if (act === "edit") card.takeText(true);
});

// -- begin

document.documentElement.classList.add("js");
addEventListener("online", () => outbox.flush().then(fetchMore));
addEventListener("resize", stick);
setInterval(() => { if (performance.now() - active.last < 600_000) fetchMore(); }, 300_000); // whoever is at it keeps what they hold
put(slot.querySelector(".card"));
outbox.flush().then(fetchMore);
