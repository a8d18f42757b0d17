// What was answered and has not reached the server yet.  It is kept in the browser under the person's name until the server has
// acknowledged it: a lost connection, a closed window or an ended session loses nothing, and the server stores each key once.

export class Outbox {
  constructor(person, csrf, { onAnswer, onCount, onSession }) {
    Object.assign(this, { name: `outbox:${person}`, csrf, onAnswer, onCount, onSession, sending: null, memory: [] });
  }

  all() {
    try { return JSON.parse(localStorage.getItem(this.name) ?? "[]"); } catch { return this.memory; }
  }

  keep(entries) {
    this.memory = entries;
    try { localStorage.setItem(this.name, JSON.stringify(entries)); } catch { /* no room or no storage: kept in this page */ }
    this.onCount(entries.length);
  }

  add(entry) {
    this.keep([...this.all(), entry]);
    return this.flush();
  }

  /** Send everything in order; resolves when there is nothing more to be sent now. */
  flush() {
    this.sending ??= this.sendAll().finally(() => { this.sending = null; });
    return this.sending;
  }

  async sendAll() {
    for (let entry; (entry = this.all()[0]);) {
      let response;
      try {
        response = await fetch(entry.path, { method: "POST", body: entry.body, headers: {
          "accept": "application/json", "content-type": "application/x-www-form-urlencoded", "x-csrf": this.csrf } });
      } catch { return this.later(); }
      if (response.status === 401 || response.status === 403) return this.onSession(response.status);
      if (response.status === 429 || response.status >= 500) return this.later();
      const answer = await response.json().catch(() => ({}));
      this.keep(this.all().filter((each) => each.id !== entry.id));
      this.onAnswer(entry, response.ok, answer);
    }
  }

  later() {
    this.onCount(this.all().length, true);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.flush(), 5000);
  }
}
