// One question's answer: statements coloured by verdict, citation marks, and the list of statements.

const MARK = /\[\^?\d+(?:\s*[,;–-]\s*\^?\d+)*\]/g;

class Answer {
  /** pick(k): called when statement k is chosen; leave(): when one passage's part is left for all's. */
  constructor(page, question, pick, leave) {
    Object.assign(this, { page, question, pick, leave, k: 0 });
    this.letters = [...question.answer];
    this.spans = question.statements.map(() => []);
    this.items = [];
    this.drawn = this.spans.map(() => []);  // each statement's words: [token, element]
    this.places = this.spans.map(() => new Map());  // each statement's tokens: which of its own each is
    question.tokens.forEach((t, i) => this.places[t[4]]?.set(i, this.places[t[4]].size));
    this.end = this.furthest();
  }
  /** Where the colours end: one end for all passages together and for each, so that they compare. */
  furthest() {
    const { tokens, statements } = this.question;
    const parts = statements.flatMap((s) => s.passages.flatMap((score) => score.token_necessity || []));
    return [...tokens.map((t) => this.effect(t)), ...parts].reduce((most, x) => Math.max(most, Math.abs(x || 0)), 0.01);
  }
  look(k) { return this.page.look(this.question.statements[k].verdict); }
  effect([, , full, none]) { return known(full) && known(none) ? full - none : null; }

  draw() {
    const told = this.question.generated ? "written by the model" : "as given";
    const side = make("section", "answer", make("h4", "", "Answer ", make("small", "", told)), this.text());
    if (this.question.tokens.length) {
      side.append(this.key());
    }
    side.append(this.list());
    return side;
  }
  /** The answer as it was given, its marks and line breaks too. */
  text() {
    const box = make("div", "given", ""), { length } = this.letters;
    box.dir = "auto";
    const owner = claimed(length, this.question.statements.map((s) => [s.start, s.end]));
    const token = claimed(length, this.question.tokens);
    const mark = this.marks(owner, token);
    let now = -2, holder = null;
    for (const [start, end, k, t, cites] of runs(length, (i) => [owner[i], token[i], mark[i]])) {
      if (k !== now) { holder = k < 0 ? make("span", "", "") : this.statement(k); box.append(holder); now = k; }
      const piece = this.piece(this.letters.slice(start, end).join(""), t, cites);
      holder.append(piece);
      if (k >= 0 && piece.className === "t") this.drawn[k].push([t, piece]);
    }
    if (!length) box.append(make("span", "note", "The answer is empty."));
    return box;
  }
  /** Which letters are citation marks: what looks like one, and what was not scored of a statement. */
  marks(owner, token) {
    const marked = new Uint8Array(this.letters.length), scored = new Set();
    owner.forEach((k, i) => { if (token[i] >= 0) scored.add(k); });
    this.letters.forEach((letter, i) => {
      if (owner[i] >= 0 && token[i] < 0 && scored.has(owner[i]) && letter.trim()) marked[i] = 1;
    });
    for (const found of this.question.answer.matchAll(MARK)) {
      const start = [...this.question.answer.slice(0, found.index)].length;
      marked.fill(1, start, start + [...found[0]].length);
    }
    return marked;
  }
  statement(k) {
    const look = this.look(k), span = make("span", `st ${look.slug}`, "");
    if (!this.spans[k].length) {
      const tag = make("b", "tag", `${k + 1} ${look.sign}`);
      tag.title = look.name;
      span.append(tag);
      span.tabIndex = 0;
      span.setAttribute("role", "button");
    }
    span.dataset.k = k;
    span.addEventListener("click", () => { if (getSelection().isCollapsed) this.pick(k); });
    span.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      this.pick(k);
    });
    this.spans[k].push(span);
    return span;
  }
  piece(text, t, cites) {
    if (cites) return make("span", "mark", text);
    if (t < 0) return document.createTextNode(text);
    const span = make("span", "t", text);
    this.together(t, span);
    return span;
  }

  // what the passages do for each word
  /** What the line under the words is, and the way back from one passage to all. */
  key() {
    this.said = make("span", "", "");
    this.said.setAttribute("role", "status");
    this.back = button("back", "", "show all passages together");
    this.back.addEventListener("click", () => this.leave());
    const key = this.page.shades.key(this.end, this.said);
    key.append(this.back);
    this.tell(null);
    return key;
  }
  tell(passage, place) {
    this.back.hidden = !passage;
    const lead = "nats: the line under the chosen statement's words says ";
    if (passage) this.said.replaceChildren(`${lead}what each loses when only `, make("b", "", place), " ", title(passage), " goes: its necessity");
    else this.said.replaceChildren(`${lead}how much likelier all passages together make each`);
  }
  /** What one passage does for each of the chosen statement's words; null: all passages together. */
  by(passage, place, score) {
    if (!this.said) return;
    const places = this.places[this.k];
    for (const [t, span] of this.drawn[this.k] || []) {
      if (passage) this.alone(span, place, score.token_necessity[places.get(t)], score.token_sufficiency?.[places.get(t)]);
      else this.together(t, span);
    }
    this.tell(passage, place);
    // On a narrow page the passages are below the answer.
    if (passage) for (const seen of [this.said.parentElement, this.spans[this.k][0]]) seen?.scrollIntoView({ block: "nearest" });
  }
  together(t, span) {
    const [, , full, none] = this.question.tokens[t], value = this.effect(this.question.tokens[t]);
    this.paint(span, value, `${worth(value)}: log p ${nats(full)} with the passages, ${nats(none)} without`);
  }
  alone(span, place, necessity, sufficiency) {
    const more = known(sufficiency) ? `, sufficiency ${worth(sufficiency)}` : "";
    this.paint(span, necessity, `${place}: necessity ${worth(necessity)}${more}`);
  }
  paint(span, value, said) {
    span.style.setProperty("--heat", known(value) ? this.page.shades.colour(value / this.end) : "transparent");
    span.title = known(value) ? said : "";
  }

  list() {
    const list = make("ol", "statements", "");
    this.question.statements.forEach((statement, k) => {
      const look = this.look(k), c = statement.context_effect;
      const choose = button("pick", "", make("b", "tag", String(k + 1)), " ", chip(look), " ",
        make("span", "n", `C ${nats(c)} nats`, make("small", "", ` ${times(c)}${statement.strength ? `, ${statement.strength}` : ""}`)));
      choose.addEventListener("click", () => this.pick(k));
      const item = make("li", look.slug, choose, this.warnings(statement), this.disagreements(statement), this.detail(k));
      this.items.push(item);
      list.append(item);
    });
    if (!this.items.length) return make("p", "note", "This answer has no statements.");
    return list;
  }
  /** The statement's own; those of the whole question stand above it. */
  warnings(statement) {
    const own = (statement.warnings || []).filter((text) => !this.question.warnings.includes(text));
    return own.length ? make("ul", "warned", ...own.map((text) => make("li", "", text))) : null;
  }
  /** What a second operator says, where it says otherwise and no warning has told it. */
  disagreements(statement) {
    const told = (name, other) => (statement.warnings || []).some((text) => text.includes(name) && text.includes(other.verdict));
    const lines = Object.entries(statement.operators || {})
      .filter(([name, other]) => known(other.verdict) && other.verdict !== statement.verdict && !told(name, other));
    if (!lines.length) return null;
    return make("ul", "warned", ...lines.map(([name, other]) => make("li", "",
      `By ${name} it is `, chip(this.page.look(other.verdict)), ` (C ${nats(other.context_effect)} nats): the two operators disagree.`)));
  }
  detail(k) {
    const statement = this.question.statements[k], look = this.look(k), c = statement.context_effect;
    const lines = [look.sentence];
    if (known(c)) lines.push(`With the passages the statement is ${times(c)} as likely as without (C = ${nats(c)} nats).`);
    const facts = [`log p ${nats(statement.logp_full)} with all passages, ${nats(statement.logp_none)} with none`];
    if (known(statement.context_p)) facts.push(`p ${chance(statement.context_p)} of off-topic passages doing as much`);
    if (known(statement.n_tokens)) facts.push(plural(statement.n_tokens, "token"));
    if (known(statement.n_forwards)) facts.push(plural(statement.n_forwards, "forward pass").replace("passs", "passes"));
    for (const [name, other] of Object.entries(statement.operators || {})) {
      if (other.verdict === statement.verdict) facts.push(`by ${name} C ${nats(other.context_effect)}, the same verdict`);
    }
    lines.push(`${facts.join("; ")}.`);
    if (statement.earlier) lines.push(this.before(statement.earlier));
    const told = make("div", "detail note", ...lines.map((line) => make("p", "", line)));
    told.hidden = true;
    return told;
  }
  /** What the earlier statements of the answer do for this one. */
  before(earlier) {
    const each = (earlier.statements || []).map((one) => `${one.sid} necessity ${nats(one.necessity)}, sufficiency ${nats(one.sufficiency)}`);
    return `Without the statements before it, C is ${nats(earlier.context_effect_without)} nats. Of them: ${each.join("; ") || "none"}.`;
  }
  choose(chosen) {
    this.by(null);
    this.k = chosen;
    this.items.forEach((item, k) => {
      item.classList.toggle("on", k === chosen);
      item.querySelector(".pick").setAttribute("aria-pressed", k === chosen);
      item.querySelector(".detail").hidden = k !== chosen;
      for (const span of this.spans[k]) {
        span.classList.toggle("on", k === chosen);
        if (span.tabIndex === 0) span.setAttribute("aria-pressed", k === chosen);
      }
    });
  }
}
