// An audit's page: the list of questions, filtered, sorted and in pages; a question is read from its
// piece of JSON when it is shown first.

const PER_PAGE = 20;

class Audit {
  constructor(root, data) {
    Object.assign(this, { root, data, read: [], hay: [], from: 0, open: new Set(), cards: new Map() });
    this.scripts = [...root.querySelectorAll(".store > script")];
    this.shades = new Shades(data.palettes);
    this.looks = new Map(data.looks.map((look) => [look.name, look]));
  }
  part(name) { return this.root.querySelector(`[data-is="${name}"]`); }
  look(name) { return this.looks.get(name) || { name: String(name), short: String(name), slug: "v-inconclusive", sign: "?", sentence: "" }; }
  question(i) { return (this.read[i] ||= JSON.parse(this.scripts[i].textContent)); }

  start() {
    if (!this.scripts.length) return;
    this.root.querySelector(".live").hidden = false;
    this.offer();
    this.listen();
    this.filter();
    if (!this.follow() && this.shown.length) this.toggle(this.shown[0], true);
  }
  /** The verdicts to filter by, with how many questions have them. */
  offer() {
    const counts = this.data.looks.map((_, v) => this.data.has.filter((has) => has.includes(v)).length);
    this.part("verdict").append(new Option("any", ""), ...this.data.looks
      .map((look, v) => [look, v]).filter(([, v]) => counts[v])
      .map(([look, v]) => new Option(`${look.sign} ${look.name} (${counts[v].toLocaleString("en")})`, v)));
  }
  listen() {
    let waiting;
    const again = () => { this.from = 0; this.filter(); };
    this.part("verdict").addEventListener("change", again);
    this.part("order").addEventListener("change", again);
    this.part("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(again, 150); });
    this.root.addEventListener("click", (event) => {
      const pressed = event.target.closest("[data-do], [data-verdict]");
      if (!pressed) return;
      if (pressed.dataset.verdict !== undefined) this.only(pressed.dataset.verdict);
      else if (pressed.dataset.do === "previous") this.turn(-PER_PAGE);
      else if (pressed.dataset.do === "next") this.turn(PER_PAGE);
    });
    if (this.data.whole) addEventListener("hashchange", () => this.follow());
  }
  /** The questions with one verdict, from the summary's button. */
  only(name) {
    const at = this.data.looks.findIndex((look) => look.name === name), choice = this.part("verdict");
    choice.value = String(at);
    if (choice.selectedIndex < 0) choice.value = "";
    this.from = 0;
    this.filter();
    this.root.querySelector(".live").scrollIntoView();
  }
  /** Go to the question that the address names. */
  follow() {
    if (!this.data.whole || !location.hash.startsWith("#q=")) return false;
    let name = location.hash.slice(3);
    try { name = decodeURIComponent(name); } catch { /* as it is */ }
    const i = this.data.ids.indexOf(name);
    if (i < 0) return false;
    if (!this.shown.includes(i)) { this.part("verdict").value = ""; this.part("search").value = ""; this.filter(); }
    const place = this.shown.indexOf(i);
    this.from = place - (place % PER_PAGE);
    this.render();
    this.toggle(i, true);
    this.cards.get(i).scrollIntoView();
    return true;
  }

  // which questions
  filter() {
    const verdict = this.part("verdict").value, words = plain(this.part("search").value).split(/\s+/).filter(Boolean);
    const order = this.part("order").value === "file" ? this.scripts.map((_, i) => i) : this.data.order;
    this.shown = order.filter((i) => (verdict === "" || this.data.has[i].includes(Number(verdict))) && words.every((word) => this.text(i).includes(word)));
    this.part("count").textContent = `${this.shown.length.toLocaleString("en")} of ${plural(this.scripts.length, "question")}`;
    this.render();
  }
  /** All that is searched of a question, in small letters. */
  text(i) {
    if (this.hay[i] === undefined) {
      const q = this.question(i);
      this.hay[i] = plain([q.id, q.question, q.answer, ...q.passages.flatMap((p) => [p.pid, p.title, p.text])].join("\n"));
    }
    return this.hay[i];
  }
  turn(by) {
    this.from = Math.max(0, Math.min(this.shown.length - 1, this.from + by));
    this.render();
    this.root.querySelector(".live").scrollIntoView();
  }
  render() {
    const list = this.root.querySelector(".list"), count = this.shown.length;
    const now = this.shown.slice(this.from, this.from + PER_PAGE);
    this.cards = new Map(now.map((i) => [i, this.row(i)]));
    list.replaceChildren(...this.cards.values());
    if (!count) list.append(make("p", "note", "No question has all of this."));
    for (const i of now) if (this.open.has(i)) this.toggle(i, true);
    this.part("pager").hidden = count <= PER_PAGE;
    this.part("range").textContent = `${(this.from + 1).toLocaleString("en")}–${(this.from + now.length).toLocaleString("en")} of ${count.toLocaleString("en")}`;
    this.root.querySelector('[data-do="previous"]').disabled = this.from === 0;
    this.root.querySelector('[data-do="next"]').disabled = this.from + PER_PAGE >= count;
  }

  // one question
  row(i) {
    const q = this.question(i), counts = new Map();
    for (const statement of q.statements) counts.set(statement.verdict, (counts.get(statement.verdict) || 0) + 1);
    const tally = this.data.looks.filter((look) => counts.has(look.name))
      .map((look) => chip(look, `${counts.get(look.name)} ${look.short}`));
    const text = make("bdi", "asked", q.question);
    const head = button("open", "", make("span", "id", q.id), " ", text, " ", make("span", "tally", ...tally));
    head.setAttribute("aria-expanded", "false");
    head.addEventListener("click", () => this.toggle(i));
    const body = make("div", "body", "");
    body.hidden = true;
    const row = make("article", "q", make("div", "qhead", head), body);
    row.dataset.id = q.id;
    return row;
  }
  toggle(i, open) {
    const row = this.cards.get(i), head = row.querySelector("button.open"), body = row.querySelector(".body");
    const now = open === undefined ? body.hidden : open;
    if (now && !body.childElementCount) this.fill(i, body);
    body.hidden = !now;
    head.setAttribute("aria-expanded", now);
    if (now) this.open.add(i); else this.open.delete(i);
  }
  fill(i, body) {
    const q = this.question(i), passages = new Passages(this, q, (...one) => answer.by(...one));
    const pick = (k) => { answer.choose(k); passages.show(k); };
    const answer = new Answer(this, q, pick, () => passages.leave());
    body.addEventListener("keydown", (event) => { if (event.key === "Escape") passages.leave(); });
    if (q.warnings.length) body.append(make("ul", "warned", ...q.warnings.map((text) => make("li", "", text))));
    body.append(make("div", "sides", answer.draw(), passages.side));
    if (this.data.whole) {
      const link = make("a", "", "link to this question");
      link.href = `#q=${encodeURIComponent(q.id)}`;
      body.append(make("p", "note link", link));
    }
    pick(this.worst(q));
  }
  /** The statement to look at first: the most alarming. */
  worst(q) {
    const rank = q.statements.map((s) => this.data.looks.findIndex((look) => look.name === s.verdict));
    return Math.max(0, rank.indexOf(Math.min(...rank)));
  }
}

function plain(text) { return text.normalize("NFKC").toLowerCase(); }

for (const root of document.querySelectorAll('[data-ma-view="@VIEW@"]:not([data-started])')) {
  root.setAttribute("data-started", "");
  const data = JSON.parse(root.querySelector(':scope > script[type="application/json"]').textContent);
  root.view = new Audit(root, data);
  root.view.start();
}
