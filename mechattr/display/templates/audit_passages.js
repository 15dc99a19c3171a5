// The passages beside an answer: their scores for the chosen statement, and the words inside.

const SHORT = 420;  // letters of a passage shown before it is unfolded

class Passages {
  /** tell(passage, its number, its score): called when what it does for each word is to be shown; tell(null): no longer. */
  constructor(page, question, tell) {
    Object.assign(this, { page, question, tell, k: 0, chosen: null, parts: new Map(), unfolded: new Set(), lit: new Set() });
    this.side = make("section", "passages", "");
    // The prompt's numbers: where sentences play, those of a passage share one.
    this.places = [...new Set(question.passages.map((passage) => passage.of))];
  }
  get statement() { return this.question.statements[this.k]; }
  /** What an effect on the statement must be above: τ, or a share of its gain. */
  get counts() {
    const { tau, share } = this.page.data;
    return Math.max(tau, share * (this.statement?.gain ?? this.statement?.context_effect ?? 0));
  }

  /** For statement k, the passage of the largest effect first. */
  show(k) {
    this.k = k;
    this.chosen = null;
    this.parts.clear();
    const { passages } = this.question, statement = this.statement;
    const told = new Map((statement ? statement.passages : []).map((score) => [score.pid, score]));
    const cards = passages.map((passage) => ({ passage, score: told.get(passage.pid) }));
    const effect = ({ score }) => Math.max(-Infinity, ...[score?.necessity, score?.surrogate].filter(known));
    if (statement) cards.sort((a, b) => (effect(b) > effect(a)) - (effect(b) < effect(a)));
    const which = statement ? ` for statement ${k + 1}` : "";
    const said = statement ? "largest effect first; the numbers are their places in the prompt; above the dashed line an effect counts" : "as in the prompt";
    const scale = this.scale([...told.values()]);
    this.side.replaceChildren(
      make("h4", "", `${plural(passages.length, "passage")}${which} `, make("small", "", passages.length ? said : "")),
      make("ol", "", ...cards.map((card) => this.card(card, scale))));
  }
  /** From what to what all bars of the statement run. */
  scale(scores) {
    const values = scores.flatMap((s) => [s.necessity, s.surrogate, s.sufficiency, s.shapley, ...(s.ci95 || [])]).filter(known);
    return [Math.min(0, ...values), Math.max(1.25 * this.counts, ...values)];
  }

  card({ passage, score }, scale) {
    const look = known(score?.verdict) ? this.page.look(score.verdict) : null;
    const head = make("div", "head", make("b", "place", this.place(passage)), title(passage),
      score?.cited ? make("span", "badge", "cited") : "", this.question.gold.includes(passage.of) ? make("span", "badge gold", "gold") : "",
      look ? chip(look) : "");
    const card = make("li", `passage ${look ? look.slug : ""}`, head);
    card.dataset.pid = passage.pid;
    if (score) card.append(this.bars(score, scale), ...this.lines(score), ...this.wordwise(passage, score, card));
    else if (this.statement) card.append(make("p", "note", "Not measured for this statement."));
    card.append(this.words(passage));
    return card;
  }
  bars(score, scale) {
    const rows = [["necessity", null], ["surrogate", score.ci95], ["sufficiency", null]];
    if (known(score.shapley)) rows.push(["shapley", null]);
    return make("div", "bars", ...rows.flatMap(([what, interval]) => [
      make("span", "what", what === "shapley" ? "Shapley" : what), track(score[what], interval, scale, this.counts), reading(score[what], interval)]));
  }
  lines(score) {
    const facts = [`p ${chance(score.p)}`, `q ${chance(score.q)}`];
    if (known(score.decisive)) facts.push(`owed to it alone ${nats(score.decisive)}`);
    if (known(score.shapley_stderr)) facts.push(`Shapley ± ${Math.abs(score.shapley_stderr).toFixed(2)}`);
    if ((score.redundant_with || []).length) {
      const joint = known(score.joint_effect) ? ` (together ${nats(score.joint_effect)} nats, ${times(score.joint_effect)})` : "";
      facts.push(`says the same as ${score.redundant_with.map((pid) => this.named(pid)).join(", ")}${joint}`);
    }
    const lines = [make("p", "note facts-line", facts.join(" · "))];
    for (const [name, other] of Object.entries(this.statement.operators || {})) {
      const theirs = (other.passages || []).find((p) => p.pid === score.pid);
      if (!theirs) continue;
      const said = ["necessity", "surrogate", "sufficiency"].filter((what) => known(theirs[what])).map((what) => `${what} ${nats(theirs[what])}`);
      const differs = known(theirs.verdict) && theirs.verdict !== score.verdict;
      lines.push(make("p", `note other${differs ? " differs" : ""}`, `by ${name}: ${said.join(", ")} `,
        known(theirs.verdict) ? chip(this.page.look(theirs.verdict)) : "", differs ? " disagrees" : ""));
    }
    return lines;
  }
  /** A button that shows, under the answer's words, what the passage does for each. */
  wordwise(passage, score, card) {
    if (!score.token_necessity) return [];
    const press = button("", "", "necessity, word by word");
    press.title = "Under the statement's words: what each loses when only this passage goes";
    press.setAttribute("aria-pressed", "false");
    press.addEventListener("click", () => this.choose(this.chosen === passage.pid ? null : passage.pid));
    this.parts.set(passage.pid, { passage, score, card, press });
    return [make("div", "wordwise", press)];
  }
  choose(pid) {
    this.chosen = pid;
    for (const [other, { card, press }] of this.parts) {
      press.setAttribute("aria-pressed", other === pid);
      card.classList.toggle("on", other === pid);
    }
    if (pid === null) return this.tell(null);
    const { passage, score } = this.parts.get(pid);
    this.tell(passage, this.place(passage), score);
  }
  /** All passages together again; back to the button that chose one. */
  leave() {
    if (this.chosen === null) return;
    const { press } = this.parts.get(this.chosen);
    this.choose(null);
    press.focus();
  }
  place(passage) { return `[${this.places.indexOf(passage.of) + 1}]`; }
  named(pid) {
    const { passages } = this.question, passage = passages.find((p) => p.pid === pid);
    return passage && this.places.length === passages.length ? this.place(passage) : String(pid);
  }

  // the text, and the words in it
  words(passage) {
    const text = make("div", "words", ""), controls = make("div", "bar", ""), told = make("div", "", "");
    text.dir = "auto";
    const long = passage.text.length > SHORT;
    const fold = button("", "", ""), light = button("", "", "words that count");
    const draw = () => {
      const lit = this.lit.has(passage.pid), open = this.unfolded.has(passage.pid) || !long;
      const marked = lit ? this.highlights(passage.pid) : [];
      light.setAttribute("aria-pressed", lit);
      fold.setAttribute("aria-expanded", open);
      fold.textContent = open ? "show less" : `show all ${known(passage.n) ? plural(passage.n, "token") : plural(passage.text.length, "letter")}`;
      text.classList.toggle("tall", open && long);
      told.replaceChildren(...(lit ? [this.explained(marked)] : []), ...(open ? this.cut(passage) : []));
      if (marked.length && marked[0].tokens.length) this.mark(text, passage, marked[0], open);
      else text.textContent = open ? passage.text : `${[...passage.text.slice(0, SHORT + 50)].slice(0, SHORT).join("")}…`;
    };
    const toggle = () => {
      if (!this.lit.delete(passage.pid)) {
        this.lit.add(passage.pid);
        if (this.highlights(passage.pid).length) this.unfolded.add(passage.pid);
      }
      draw();
    };
    light.addEventListener("click", toggle);
    text.addEventListener("click", () => { if (getSelection().isCollapsed) toggle(); });
    fold.addEventListener("click", () => { if (!this.unfolded.delete(passage.pid)) this.unfolded.add(passage.pid); draw(); });
    if (long) controls.append(fold);
    if (this.statement) controls.append(light);
    draw();
    return make("div", "", text, told, controls);
  }
  highlights(pid) {
    return this.statement ? this.question.highlights.filter((one) => one.sid === this.statement.sid && one.pid === pid) : [];
  }
  explained(marked) {
    if (!marked.length || !marked[0].tokens.length) {
      if (marked.length && marked[0].note) return make("p", "note how", marked[0].note);
      return make("p", "note how", "This passage's words were not measured for this statement. To get them: ", make("code", "", "mechattr audit --tokens METHOD"), ".");
    }
    const end = strongest(marked[0]);
    return this.page.shades.key(end, `${marked[0].method}: red words raise the statement's log p, blue ones lower it`);
  }
  cut(passage) {
    if (!passage.letters) return [];
    return [make("p", "note", `Cut here: ${passage.text.length.toLocaleString("en")} of ${passage.letters.toLocaleString("en")} letters, so that the page can be opened.`)];
  }
  /** The words coloured by their scores, and the strongest one scrolled into sight. */
  mark(text, passage, one, open) {
    const letters = [...passage.text].slice(0, open ? undefined : SHORT), end = strongest(one);
    const token = claimed(letters.length, one.tokens);
    let top = null, most = 0;
    text.replaceChildren(...runs(letters.length, (i) => [token[i]]).map(([a, b, t]) => {
      const said = letters.slice(a, b).join("");
      if (t < 0 || !known(one.tokens[t][2])) return document.createTextNode(said);
      const score = one.tokens[t][2], span = make("span", "t", said);
      span.style.background = this.page.shades.colour(score / end);
      span.style.color = this.page.shades.ink(score / end);
      span.title = `${nats(score)} (${one.method})`;
      if (Math.abs(score) > most) [top, most] = [span, Math.abs(score)];
      return span;
    }));
    if (!open) text.append("…");
    if (top) requestAnimationFrame(() => { text.scrollTop = Math.max(0, top.offsetTop - text.offsetTop - text.clientHeight / 2); });
  }
}

function strongest(one) { return Math.max(1e-9, ...one.tokens.map((t) => Math.abs(t[2] || 0))); }

/** The passage's title and id. */
function title(passage) {
  const id = make("code", "", passage.pid);
  if (!passage.title) return id;
  const name = make("bdi", "title", passage.title);
  return make("span", "", name, " ", id);
}

/** A bar from zero, its interval, and a dashed line at what counts. */
function track(value, interval, [low, high], counts) {
  const at = (x) => (100 * (x - low)) / (high - low), line = make("span", "track", "");
  const place = (tag, kind, from, to) => {
    const made = make(tag, kind, "");
    made.style.left = `${at(from)}%`;
    if (to !== undefined) made.style.width = `${at(to) - at(from)}%`;
    line.append(made);
  };
  if (known(value)) place("i", value < 0 ? "less" : "", Math.min(0, value), Math.max(0, value));
  if (interval && known(interval[0]) && known(interval[1])) place("b", "", interval[0], interval[1]);
  place("s", "zero", 0);
  place("s", "counts", counts);
  return line;
}

function reading(value, interval) {
  const ends = interval && known(interval[0]) ? ` [${nats(interval[0])}, ${nats(interval[1])}]` : "";
  const said = make("span", "n", nats(value), make("small", "", known(value) ? ` ${times(value)}` : ""), make("small", "ends", ends));
  said.title = known(value) ? `${nats(value)} nats: the statement is ${times(value)} as likely` : "not measured";
  return said;
}
