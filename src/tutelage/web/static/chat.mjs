// The page of a live chat while it is the person's turn.  What is typed is kept in the browser until the server has it; without this
// script the form works by itself.

const form = document.querySelector("#turn");
document.documentElement.classList.add("js");

if (form) {
  const { turn } = form.elements, name = `draft:${form.dataset.draft}`, waiting = document.querySelector("#waiting");
  const stored = (use) => { try { return use(localStorage); } catch { return null; } }; // no storage: no draft
  const chat = name.slice(0, name.lastIndexOf(".") + 1); // what was kept of its earlier turns is stored by now
  stored((storage) => Object.keys(storage).filter((key) => key.startsWith(chat) && key !== name).forEach((key) => storage.removeItem(key)));
  turn.value ||= stored((storage) => storage.getItem(name)) ?? "";
  turn.setSelectionRange(turn.value.length, turn.value.length);
  turn.addEventListener("input", () => stored((storage) => storage.setItem(name, turn.value)));
  turn.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  form.addEventListener("submit", (event) => {
    if (form.dataset.sent) { event.preventDefault(); return; } // once
    form.dataset.sent = "yes";
    stored((storage) => storage.setItem(name, turn.value));
    waiting.textContent = waiting.dataset.text;
  });
  addEventListener("pageshow", (event) => { if (event.persisted) { delete form.dataset.sent; waiting.textContent = ""; } });
}
const open = (selector) => { const box = document.querySelector(selector); if (box) { box.open = !box.open; box.scrollIntoView({ block: "nearest" }); } };
const LETTERS = { s: ".skipper", g: "#guidelines", "?": "#help" };
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") document.activeElement.blur();
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches?.("textarea, input, select") || !LETTERS[event.key]) return;
  event.preventDefault();
  open(LETTERS[event.key]);
});
document.querySelector(".talk")?.lastElementChild?.scrollIntoView({ block: "end" });
