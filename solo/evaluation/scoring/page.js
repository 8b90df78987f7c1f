"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const element = (name, className, text) => {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};
const STEP = 40;
let shown = [], drawn = 0;

function fill(select, entries) {
  const before = select.value;
  select.replaceChildren(...entries.map(([value, text]) => {
    const option = element("option", "", text);
    option.value = value;
    return option;
  }));
  if (entries.some(([value]) => value === before)) select.value = before;
  select.parentElement.hidden = entries.length < 2;
}

const task = () => data.tasks[Number(find("task").value)];
const verdictOf = (answer) => answer.score === null ? "unscored" : answer.score >= 1 ? "right" : answer.score > 0 ? "partly" : "wrong";

function choices() {
  const { ways, against, records } = task();
  fill(find("way"), ways.map((name, number) => [String(number), name]));
  const groups = new Map();
  for (const record of records)
    for (const [label, value] of Object.entries(record.labels))
      groups.set(`${label}: ${value}`, 1 + (groups.get(`${label}: ${value}`) || 0));
  const listed = [...groups].filter(([, count]) => count > 1).sort((a, b) => a[0].localeCompare(b[0])).slice(0, 400);
  fill(find("group"), [["", "all"], ...listed.map(([name, count]) => [name, `${name} (${count})`])]);
  const verdicts = [["", "all"], ["right", "right"], ["wrong", "wrong"], ["partly", "partly right"]];
  for (const mark of ["cut", "shrunk", "too_long", "guessed"])
    if (records.some((record) => record.answers.some((answer) => answer.marks.includes(mark))))
      verdicts.push([mark, MARKS[mark]]);
  against.forEach(({ name }, number) => verdicts.push([`better${number}`, `better than ${name}`], [`worse${number}`, `worse than ${name}`]));
  if (ways.length > 1) verdicts.push(["same", "right in every way of asking"]);
  fill(find("verdict"), verdicts);
}

const MARKS = {
  cut: "cut by max_new_tokens", shrunk: "images made smaller", too_long: "too long to ask", guessed: "drawn at random",
};

function passes(record, way, group, verdict, words) {
  const answer = record.answers[way];
  if (group && !Object.entries(record.labels).some(([label, value]) => `${label}: ${value}` === group)) return false;
  if (verdict) {
    const pair = verdict.match(/^(better|worse)(\d+)$/);
    if (pair) {
      // The two were asked in the same way, whichever is chosen.
      const other = record.others[Number(pair[2])], mine = record.answers[task().against[Number(pair[2])].way];
      if (!other || (pair[1] === "better" ? mine.score <= other.score : mine.score >= other.score)) return false;
    } else if (verdict === "same") {
      if (!record.answers.every((each) => each.score >= 1)) return false;
    } else if (verdict in MARKS ? !answer.marks.includes(verdict) : verdictOf(answer) !== verdict) return false;
  }
  if (!words.length) return true;
  const text = [record.key, record.prompt, answer.text, ...record.references, ...Object.values(record.options)].join("\n").toLowerCase();
  return words.every((word) => text.includes(word));
}

function filter() {
  const way = Number(find("way").value), { records, of } = task();
  const words = find("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  shown = records.filter((record) => passes(record, way, find("group").value, find("verdict").value, words));
  const scores = shown.map((record) => record.answers[way].score).filter((score) => score !== null);
  const mean = scores.length ? `; mean score of these answers ${(100 * scores.reduce((a, b) => a + b, 0) / scores.length).toFixed(1)}%` : "";
  const some = records.length < of ? ` (the page holds ${records.length.toLocaleString("en")} of ${of.toLocaleString("en")}, evenly spread)` : "";
  find("count").textContent = `${shown.length.toLocaleString("en")} questions${some}${mean}`;
  find("cards").replaceChildren();
  drawn = 0;
  more();
  remember();
}

function more() {
  const way = Number(find("way").value), next = shown.slice(drawn, drawn + STEP);
  find("cards").append(...next.map((record) => card(record, way)));
  drawn += next.length;
  find("end").textContent = drawn < shown.length ? "more below" : "";
}

function card(record, way) {
  const made = element("article");
  if (record.images.length) {
    const well = element("div", "well");
    for (const number of record.images) {
      const source = data.images[number];
      if (!source) { well.append(element("span", "quiet", "cannot be decoded")); continue; }
      const image = element("img");
      image.decoding = "async";
      image.alt = "";
      image.addEventListener("load", () => image.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) <= 64));
      image.src = source;
      well.append(image);
    }
    made.append(well);
  }
  const body = element("div", "body");
  body.append(element("p", "prompt", record.prompt));
  task().ways.forEach((name, number) => body.append(answerLine(number === 0 && task().ways.length === 1 ? "" : name, record.answers[number], number === way)));
  record.others.forEach((other, number) => other && body.append(answerLine(task().against[number].name, other, false)));
  const references = [...new Set(record.references)].map((reference) => record.options[reference] ? `${reference}. ${record.options[reference]}` : reference);
  body.append(row("reference", references.join(" · ")));
  const labels = Object.entries(record.labels).map(([label, value]) => `${label} ${value}`).join(" · ");
  body.append(element("footer", "quiet", [record.key, labels].filter(Boolean).join(" · ")));
  made.append(body);
  return made;
}

function row(name, text, className) {
  const made = element("div", `row ${className || ""}`);
  made.append(element("span", "name", name), element("span", "value", text));
  return made;
}

function answerLine(name, answer, chosen) {
  const verdict = verdictOf(answer), mark = { right: "✓", wrong: "✗", partly: "~", unscored: "" }[verdict];
  const made = row(name || "answer", "", `answer ${verdict}${chosen ? "" : " other"}`);
  const value = made.lastChild;
  value.append(element("span", "mark", `${mark} `), element("span", answer.text ? "text" : "text quiet", answer.text || "nothing"));
  const notes = answer.marks.map((each) => MARKS[each]);
  if (answer.extracted !== null && answer.extracted !== answer.text.trim()) notes.unshift(`read as ${answer.extracted}`);
  if (verdict === "partly") notes.unshift(`score ${answer.score.toFixed(2)}`);
  if (notes.length) value.append(element("span", "quiet note", notes.join("; ")));
  made.setAttribute("aria-label", verdict);
  return made;
}

const KEPT = ["task", "way", "group", "verdict", "search"];
function remember() {
  const state = new URLSearchParams(KEPT.map((id) => [id, find(id).value]).filter(([, value]) => value && value !== "0"));
  history.replaceState(null, "", `#${state}`);
}

fill(find("task"), data.tasks.map((each, number) => [String(number), each.title]));
const state = new URLSearchParams(location.hash.slice(1));
if (state.has("task")) find("task").value = state.get("task");
if (find("task").value === "") find("task").value = "0";
choices();
for (const id of KEPT.slice(1)) if (state.has(id)) { find(id).value = state.get(id); if (find(id).value === "" && id !== "search") choices(); }
find("task").addEventListener("change", () => { choices(); filter(); });
for (const id of ["way", "group", "verdict"]) find(id).addEventListener("change", filter);
let timer;
find("search").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(filter, 120); });
new IntersectionObserver((entries) => entries[0].isIntersecting && drawn < shown.length && more(), { rootMargin: "800px" }).observe(find("end"));
filter();
