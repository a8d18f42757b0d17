// Words that went and words that came, by the longest common subsequence.

const MOST = 4_000_000; // cells of the table: two texts of 2000 words each

// Chinese, Japanese and Korean have no spaces between words: there each sign is one.
const WORD = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}]|[\p{L}\p{N}_'’]+|\s+|[^\s]/gu;

export const words = (text) => text.match(WORD) ?? [];

/** [["same" | "gone" | "new", text], ...], or null where the texts are too long. */
export function compare(before, after) {
  const a = words(before), b = words(after);
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  let endA = a.length, endB = b.length;
  while (endA > start && endB > start && a[endA - 1] === b[endB - 1]) { endA--; endB--; }
  const n = endA - start, m = endB - start;
  if ((n + 1) * (m + 1) > MOST) return null;
  const width = m + 1, longest = new Uint32Array((n + 1) * width);
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      longest[i * width + j] = a[start + i] === b[start + j] ? longest[(i + 1) * width + j + 1] + 1
        : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    }
  }
  const out = [];
  const put = (kind, text) => {
    if (out.length && out.at(-1)[0] === kind) out.at(-1)[1] += text; else if (text) out.push([kind, text]);
  };
  put("same", a.slice(0, start).join(""));
  let i = 0, j = 0;
  while (i < n || j < m) {
    if (i < n && j < m && a[start + i] === b[start + j]) { put("same", a[start + i]); i++; j++; }
    else if (j >= m || (i < n && longest[(i + 1) * width + j] >= longest[i * width + j + 1])) put("gone", a[start + i++]);
    else put("new", b[start + j++]);
  }
  put("same", a.slice(endA).join(""));
  return out;
}

/** Words (not spaces) that went or came. */
export const distance = (parts) => parts.reduce((sum, [kind, text]) =>
  sum + (kind === "same" ? 0 : words(text).filter((word) => word.trim()).length), 0);

/** Show parts in an element; `only` leaves out the other side: "gone" for the text before, "new" for the one after. */
export function show(element, parts, only = "") {
  element.replaceChildren(...parts.filter(([kind]) => !only || kind === "same" || kind === only).map(([kind, text]) => {
    if (kind === "same") return document.createTextNode(text);
    const mark = document.createElement(kind === "gone" ? "del" : "ins");
    mark.textContent = text;
    return mark;
  }));
}
