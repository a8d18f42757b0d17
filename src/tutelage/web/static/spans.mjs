// Stretches of an answer with a label.  The text stands in a field that takes no change, so that it can be selected by mouse and by keyboard.
// Positions go to the server in code points of the answer as it was stored; the field counts UTF-16 units and makes one line
// end of CR LF.

export class Spans {
  constructor(field, raws, words, onChange) {
    Object.assign(this, { field, raws, words, onChange, hidden: field.querySelector("input[type=hidden]"), list: field.querySelector(".marked") });
    this.sources = [...field.querySelectorAll(".source")];
    this.sources.forEach((source, at) => {
      source.value = raws[at];
      source.readOnly = false; // a read-only field has no cursor to select with by keyboard: it refuses every change itself
      source.setAttribute("aria-readonly", "true");
      source.addEventListener("beforeinput", (event) => event.preventDefault());
      source.addEventListener("input", (event) => { event.stopPropagation(); source.value = raws[at]; });
    });
    for (const button of field.querySelectorAll("[data-label]")) button.addEventListener("click", () => this.add(button.dataset.label));
    for (const source of this.sources) source.addEventListener("focus", () => { this.last = source; });
    this.load();
  }

  load() {
    try { this.spans = JSON.parse(this.hidden.value); } catch { this.spans = []; }
    this.show();
  }

  press(key) {
    const button = this.field.querySelector(`[data-key="${key}"]`);
    button?.click();
    return button;
  }

  add(label) {
    const source = this.last;
    if (!source || source.selectionStart === source.selectionEnd) return this.say(this.words.select_first);
    const at = Number(source.dataset.at);
    const start = position(this.raws[at], source.selectionStart), end = position(this.raws[at], source.selectionEnd);
    if (!this.spans.some((each) => each.response === at && each.start === start && each.end === end && each.label === label)) {
      this.spans.push({ response: at, start, end, label });
    }
    this.keep();
    source.focus();
  }

  keep() {
    this.hidden.value = JSON.stringify(this.spans);
    this.show();
    this.onChange();
  }

  say(text) {
    const line = document.createElement("li");
    line.textContent = text;
    this.list.append(line);
  }

  show() {
    this.list.replaceChildren(...this.spans.map((span) => {
      const line = document.createElement("li"), mark = document.createElement("mark"), button = document.createElement("button");
      mark.textContent = [...this.raws[span.response] ?? ""].slice(span.start, span.end).join("");
      button.type = "button";
      button.textContent = this.words.remove;
      button.addEventListener("click", () => { this.spans = this.spans.filter((each) => each !== span); this.keep(); });
      line.append(`${"ABCDEFGHIJKLMNOPQRST"[span.response]} · ${span.label}: `, mark, " ", button);
      return line;
    }));
  }
}

/** Code points of `raw` that stand before UTF-16 unit `unit` of the field that shows it. */
export function position(raw, unit) {
  let points = 0, units = 0, i = 0;
  while (units < unit && i < raw.length) {
    if (raw[i] === "\r" && raw[i + 1] === "\n") { i += 2; points += 2; units += 1; continue; }
    const size = raw.codePointAt(i) > 0xffff ? 2 : 1;
    i += size; points += 1; units += size;
  }
  return points;
}
