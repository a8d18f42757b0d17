// One item on the screen: which question is next, number keys, raw text, differences, edits, spans, draft.

import { compare, distance, show } from "./diff.mjs";
import { Spans } from "./spans.mjs";

export class Card {
  constructor(element, words, person) {
    Object.assign(this, { element, words, form: element.querySelector("form"), lease: element.dataset.lease });
    this.id = `${this.lease}.${element.dataset.round}`;
    this.draftName = `draft:${person}:${this.id}`;
    this.raws = [...element.querySelectorAll(".raw pre")].map((pre) => pre.textContent);
    this.cells = [...element.querySelectorAll(".cell")];
    this.passed = new Set(); // cells that were answered just now, or gone past; what a draft or an undo brought back is not
    this.spans = [...element.querySelectorAll(".field.spans")].map((field) => new Spans(field, this.raws, words, () => this.saveDraft()));
    this.edit = element.querySelector(".field.edit");
    if (this.edit) Object.assign(this.edit, { text: this.edit.querySelector("textarea"), which: this.edit.querySelector("select") });
    this.form.noValidate = true; // `fault` says what is missing
    this.restoreDraft();
    this.form.addEventListener("input", () => { this.saveDraft(); this.update(); });
    this.form.addEventListener("change", () => this.update());
    if (this.edit) this.edit.which.addEventListener("change", () => this.takeText());
    this.update();
  }

  // -- questions

  answered(cell) { return Boolean(cell.querySelector(":checked")); }
  asked(cell) {
    const [name, value] = (cell.dataset.needs ?? "").split("=");
    return !name || [...this.form.elements].some((input) => input.name === name && input.value === value && input.checked);
  }

  /** The cell that the number keys are for: the one with the focus, else the first that is open. */
  active() {
    const focused = document.activeElement?.closest?.(".cell");
    if (focused && this.element.contains(focused)) return focused;
    return this.cells.find((cell) => this.asked(cell) && !this.passed.has(cell) && (!cell.dataset.many || cell.dataset.needs));
  }

  update() {
    for (const cell of this.cells) cell.hidden = !this.asked(cell);
    const active = this.active();
    for (const cell of this.cells) cell.classList.toggle("active", cell === active);
    if (this.edit) this.showEdit();
  }

  /** Number key.  True when it was the last answer that keys can give. */
  press(key) {
    const cell = this.active();
    const input = cell?.querySelector(`[data-key="${key}"]`);
    if (!input) {
      if (!cell) this.spans.find((each) => each.press(key)); // no question left for numbers: they are the labels of spans
      return false;
    }
    input.checked = input.type === "radio" ? true : !input.checked;
    if (document.activeElement?.closest?.(".cell") === cell) document.activeElement.blur();
    this.saveDraft();
    return input.type === "radio" && this.advance(cell);
  }

  /** Past a cell.  True when it was the last. */
  advance(cell) {
    this.passed.add(cell);
    this.update();
    const next = this.active();
    if (next) { next.scrollIntoView({ block: "nearest" }); return false; }
    if (this.element.dataset.quick) return true;
    this.openText();
    return false;
  }

  /** Enter: past a cell where several may be chosen, or one that may stay empty.  True when there is nothing left to go past. */
  pass() {
    const cell = this.active();
    return !cell || (!cell.dataset.many && (this.answered(cell) || cell.closest("[data-required]"))) ? true : this.advance(cell);
  }

  back() {
    const answered = this.cells.filter((cell) => this.asked(cell) && (this.answered(cell) || this.passed.has(cell)));
    const last = answered.at(-1);
    if (!last) return;
    this.passed.delete(last);
    for (const input of last.querySelectorAll("input")) input.checked = false;
    this.saveDraft();
    this.update();
  }

  /** What keeps it from being sent: {element, message}, or nothing. */
  fault() {
    for (const field of this.element.querySelectorAll(".field.rank")) {
      const ranks = [...field.querySelectorAll(":checked")].map((input) => input.value);
      if (ranks.length === field.querySelectorAll(".cell").length && !ranks.includes("1")) return { element: field, message: this.words.no_best };
    }
    for (const field of this.element.querySelectorAll("[data-required]")) {
      const open = [...field.querySelectorAll(".cell")].find((cell) => !cell.dataset.many && this.asked(cell) && !this.answered(cell));
      if (open) return { element: open, message: this.words.missing };
      if (field.dataset.kind === "edit" && !this.edit.text.value.trim()) return { element: field, message: this.words.missing };
    }
    const text = [...this.form.elements].find((input) => input.tagName === "TEXTAREA" && !input.checkValidity());
    return text && { element: text, message: this.words.missing };
  }

  openText() {
    const field = this.element.querySelector(".field.edit, .field.write, .field.reason[open], .field.spans");
    if (field && field === this.edit) return this.takeText(true);
    field?.querySelector("textarea")?.focus();
  }

  openReason() {
    const field = this.element.querySelector(".field.reason");
    if (!field) return;
    field.open = true;
    field.querySelector("textarea").focus();
  }

  toSafety() {
    const cell = this.element.querySelector(".field.safe_unsafe .cell, .field.flags .cell");
    cell?.querySelector("input").focus();
    this.update();
  }

  /** Which of two answers is shown where there is room for one. */
  tab(at) {
    const answers = this.element.querySelector(".answers.n2");
    if (!answers) return;
    answers.dataset.tab = at;
    for (const button of this.element.querySelectorAll(".tabs button")) button.setAttribute("aria-pressed", String(button.dataset.tab === String(at)));
    const tabs = this.element.querySelector(".tabs");
    if (tabs.offsetHeight && answers.getBoundingClientRect().top < 0) tabs.scrollIntoView({ block: "start" });
  }

  // -- raw text and differences

  toggle(what) {
    const button = this.element.querySelector(`[data-act="${what}"]`);
    if (!button) return;
    const on = button.getAttribute("aria-pressed") !== "true";
    for (const each of this.element.querySelectorAll(".tools [aria-pressed]")) each.setAttribute("aria-pressed", String(each === button && on));
    const parts = what === "diff" && on ? compare(this.raws[0], this.raws[1]) : null;
    [...this.element.querySelectorAll(".answer")].forEach((answer, at) => {
      const compared = answer.querySelector(".compared");
      answer.querySelector(".shown").hidden = on;
      answer.querySelector(".raw").open = what === "raw" && on;
      answer.querySelector(".raw").hidden = what === "diff" && on;
      compared.hidden = !(what === "diff" && on);
      if (parts) show(compared, parts, at ? "new" : "gone");
      else compared.textContent = what === "diff" && on ? this.words.too_long : "";
    });
  }

  // -- the corrected answer

  better() {
    const chosen = Number(this.element.querySelector(".field.pair :checked")?.value ?? 0);
    return chosen > 0 ? 1 : 0;
  }

  /** Put the better answer's text into the field, unless it was worked on; then the cursor goes there. */
  takeText(ofBetter = false) {
    const { text, which } = this.edit;
    const untouched = !text.value || this.raws.some((raw) => raw.replaceAll(/\r\n?/g, "\n") === text.value);
    if (untouched && ofBetter) which.value = String(this.better());
    if (untouched) text.value = this.raws[Number(which.value)].replaceAll(/\r\n?/g, "\n");
    text.focus();
    this.update();
  }

  showEdit() {
    const compared = this.edit.querySelector(".compared"), line = this.edit.querySelector(".distance");
    const { text, which } = this.edit;
    const parts = text.value ? compare(this.raws[Number(which.value)], text.value) : [];
    compared.hidden = !parts || !parts.some(([kind]) => kind !== "same");
    if (parts) show(compared, parts);
    line.textContent = !text.value ? "" : parts ? this.words.distance.replace("{count}", distance(parts)) : this.words.too_long;
  }

  // -- draft

  fields() { return [...new FormData(this.form)].filter(([name]) => !["csrf", "key", "seconds"].includes(name)); }

  saveDraft() {
    clearTimeout(this.saving);
    this.saving = setTimeout(() => this.keepDraft(), 200);
  }

  keepDraft() {
    try { localStorage.setItem(this.draftName, JSON.stringify(this.fields())); } catch { /* no storage: no draft */ }
  }

  dropDraft() {
    clearTimeout(this.saving);
    try { localStorage.removeItem(this.draftName); } catch { /* none was kept */ }
  }

  restoreDraft() {
    let fields;
    try { fields = JSON.parse(localStorage.getItem(this.draftName)); } catch { return; }
    if (!Array.isArray(fields)) return;
    for (const input of this.form.elements) if (["radio", "checkbox"].includes(input.type)) input.checked = false;
    for (const [name, value] of fields) {
      for (const input of this.form.elements) {
        if (input.name !== name) continue;
        if (!["radio", "checkbox"].includes(input.type)) input.value = value;
        else if (input.value === value) input.checked = true;
      }
    }
    for (const field of this.element.querySelectorAll(".field.reason")) if (field.querySelector("textarea").value) field.open = true;
    for (const each of this.spans) each.load();
  }
}
