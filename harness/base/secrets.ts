// SPDX-License-Identifier: Apache-2.0

/**
 * What a run knows to be secret, and how that is found in a text, whoever wrote it and however it was encoded: sandbox
 * tokens that crossed the tap, the keys that a stack was given, and variables of the environment.
 *
 * Texts are compared by their letters and digits alone, in lower case. Quotes, line breaks, blanks, escapes, and what
 * tells base64 from base64url make no difference then, so that each secret has few forms: as it is, percent-encoded, in
 * base64 at its three alignments, in hex, and as a list of decimal bytes. Every eighth window of eight characters of each
 * form is indexed, and a text is looked through once: what that costs does not depend on how many secrets there are.
 */
import { appendFileSync, closeSync, openSync, readSync, statSync } from "node:fs";
import { join } from "node:path";

export const REDACTED = "<redacted>";

/** Names of fields, variables and flags that hold secrets. `secret_name` and `token_file` only name one. */
export const SECRET_NAME =
  /(?:token|secret|password|passwd|passphrase|credentials?|authorization|cookie|private[_-]?key|api[_-]?key|access[_-]?key)s?$/i;

/** A shorter value may be a common word; texts would be full of holes. In characters. */
export const LEAST_SECRET = 8;
/** A secret of this length is known by its parts, too, such as one segment of a token. A path is not, whatever its length. */
const LONG_SECRET = 64;
/** So many letters and digits in a row make a part. */
const LEAST_PART = 16;
/** Of a longer secret the beginning is looked for, in bytes: that is enough to find it, and its cost is bounded. */
const LONGEST_SECRET = 8_192;
/** How many secrets are known at a time, the latest; the index takes a few tens of megabytes then. */
const MOST_SECRETS = 500;

const WINDOW = 8;
/** Windows start so far apart: every part contains a whole one. */
const STRIDE = LEAST_PART - WINDOW + 1;
const FILTER_BITS = 20;

/** A secret in one of its forms: letters and digits, in lower case. */
interface Form {
  codes: Uint8Array;
  inParts: boolean;
}

/** Secrets by their forms. */
export class Secrets {
  readonly #known = new Map<string, Form[]>();
  /** Secrets with too few letters and digits for the index. */
  readonly #literal = new Set<string>();
  readonly #index = new Map<number, { form: Form; at: number }[]>();
  readonly #filter = new Uint8Array(1 << FILTER_BITS);

  constructor(secrets: Iterable<string> = []) {
    for (const secret of secrets) this.add(secret);
  }

  /** Learns a secret: a token, a password, or a PEM file. Returns whether it is news. */
  add(secret: string): boolean {
    const text = secret.trim();
    if (text.length < LEAST_SECRET || this.#known.has(text)) return false;
    const forms = formsOf(text.slice(0, LONGEST_SECRET));
    if (lettersOf(text).length < WINDOW) this.#literal.add(text);
    this.#known.set(text, forms);
    for (const form of forms) this.#enter(form);
    if (this.#known.size > MOST_SECRETS) this.#forget();
    return true;
  }

  #enter(form: Form): void {
    const last = form.codes.length - WINDOW;
    for (let at = 0; at <= (form.inParts ? last : Math.min(0, last)); at += STRIDE) {
      const hash = hashAt(form.codes, at);
      const places = this.#index.get(hash) ?? [];
      // What tokens have in common, one of them stands for.
      if (form.inParts && places.some((place) => place.form.inParts && sameWindow(place, form.codes, at)))
        continue;
      this.#index.set(hash, [...places, { form, at }]);
      this.#filter[hash >>> (32 - FILTER_BITS)] = 1;
    }
  }

  /** Forgets the older half: whatever is printed now is about what happened lately. */
  #forget(): void {
    const kept = [...this.#known].slice(-MOST_SECRETS / 2);
    for (const each of [this.#known, this.#literal, this.#index]) each.clear();
    this.#filter.fill(0);
    for (const [secret, forms] of kept) {
      this.#known.set(secret, forms);
      if (lettersOf(secret).length < WINDOW) this.#literal.add(secret);
      for (const form of forms) this.#enter(form);
    }
  }

  /** The text without the secrets. Takes time in proportion to its length. */
  redact(text: string): string {
    if (this.#known.size === 0 || text.length < LEAST_SECRET) return text;
    let clean = this.#redactForms(text);
    for (const secret of this.#literal) clean = clean.replaceAll(secret, REDACTED);
    return clean;
  }

  #redactForms(text: string): string {
    const { codes, places, length } = letters(text);
    let clean = "";
    let done = 0;
    for (let at = 0; at + WINDOW <= length;) {
      const hash = hashAt(codes, at);
      const found = this.#filter[hash >>> (32 - FILTER_BITS)] === 1 && this.#matchAt(codes, length, at, hash);
      if (!found) {
        at++;
        continue;
      }
      const from = Math.max(done, places[found.from]!);
      const to = places[found.to - 1]! + 1;
      if (to > done) clean += text.slice(done, from) + (from === done && done > 0 ? "" : REDACTED);
      done = Math.max(done, to);
      // What follows may be another secret's that begins in the same way.
      at = Math.max(at + 1, found.to - WINDOW + 1);
    }
    return done === 0 ? text : clean + text.slice(done);
  }

  /** The longest piece of a secret around a window of a text. */
  #matchAt(
    codes: Uint8Array,
    length: number,
    at: number,
    hash: number,
  ): { from: number; to: number } | undefined {
    let longest: { from: number; to: number } | undefined;
    for (const { form, at: inForm } of this.#index.get(hash) ?? []) {
      let [from, to, left, right] = [at, at, inForm, inForm];
      while (to < length && right < form.codes.length && codes[to] === form.codes[right])
        [to, right] = [to + 1, right + 1];
      if (to - at < WINDOW) continue;
      while (form.inParts && from > 0 && left > 0 && codes[from - 1] === form.codes[left - 1])
        [from, left] = [from - 1, left - 1];
      const isFound =
        to - from >= (form.inParts ? Math.min(LEAST_PART, form.codes.length) : form.codes.length);
      if (isFound && to - from > (longest ? longest.to - longest.from : 0)) longest = { from, to };
    }
    return longest;
  }
}

/** Such as those of a PEM file, whose frame is none. */
const PEM = /-----BEGIN [A-Z ]{1,40}-----([\w+/=\s]{1,8192})-----END /g;

function formsOf(secret: string): Form[] {
  const bodies = [...secret.matchAll(PEM)].map(([, body = ""]) => body.replaceAll(/\s+/g, ""));
  if (bodies.length > 0) return bodies.flatMap((body) => encoded(Buffer.from(body, "base64"), true));
  const inParts = secret.length >= LONG_SECRET && !secret.startsWith("/");
  const percent = encodeURIComponent(secret.toWellFormed());
  const plain = [secret, ...(percent === secret ? [] : [percent])].map((text) => ({
    codes: lettersOf(text),
    inParts,
  }));
  return [...plain, ...encoded(Buffer.from(secret), inParts)].filter(({ codes }) => codes.length >= WINDOW);
}

/** Bytes in base64, wherever in a longer text they may begin, in hex, and as a list of numbers. */
function encoded(bytes: Buffer, inParts: boolean): Form[] {
  const aligned = [0, 1, 2].map((offset) => {
    const text = Buffer.concat([Buffer.alloc(offset), bytes]).toString("base64url");
    // The first and the last character may hold bits of what is beside them.
    const whole = Math.floor(((offset + bytes.length) * 8) / 6);
    return text.slice(Math.ceil((offset * 8) / 6), whole);
  });
  return [...aligned, bytes.toString("hex"), bytes.join()].map((text) => ({
    codes: lettersOf(text),
    inParts,
  }));
}

// Texts by their letters and digits

interface Letters {
  codes: Uint8Array;
  /** Where in the text each stands. */
  places: Uint32Array;
  length: number;
}

const CODES = new Uint8Array(128);
for (const character of "0123456789abcdefghijklmnopqrstuvwxyz") {
  CODES[character.charCodeAt(0)] = character.charCodeAt(0);
  CODES[character.toUpperCase().charCodeAt(0)] = character.charCodeAt(0);
}
const [BACKSLASH, ZERO, LETTER_U, LETTER_X] = ["\\", "0", "u", "x"].map((each) => each.charCodeAt(0));
const BREAKS = new Set([..."nrt"].map((each) => each.charCodeAt(0)));

let scratch: Letters = { codes: new Uint8Array(4_096), places: new Uint32Array(4_096), length: 0 };

/** The letters and digits of a text. What escapes say beside them, as `\x65` and `\u0065` do, is left out. Reused by the next call. */
function letters(text: string): Letters {
  if (text.length > scratch.codes.length)
    scratch = { codes: new Uint8Array(text.length), places: new Uint32Array(text.length), length: 0 };
  const { codes, places } = scratch;
  let length = 0;
  for (let at = 0; at < text.length; at++) {
    const code = text.charCodeAt(at);
    if (code === BACKSLASH) {
      const next = text.charCodeAt(at + 1);
      if (next === LETTER_X || BREAKS.has(next)) at++;
      else if (next === LETTER_U && text.startsWith("00", at + 2)) at += 3;
      continue;
    }
    // `0x65`
    if (code === ZERO && text.charCodeAt(at + 1) === LETTER_X) {
      at++;
      continue;
    }
    const letter = code < 128 ? CODES[code]! : 0;
    if (letter === 0) continue;
    codes[length] = letter;
    places[length++] = at;
  }
  scratch.length = length;
  return scratch;
}

function lettersOf(text: string): Uint8Array {
  const { codes, length } = letters(text);
  return codes.slice(0, length);
}

function hashAt(codes: Uint8Array, at: number): number {
  let hash = 0;
  for (let index = at; index < at + WINDOW; index++) hash = Math.imul(hash, 0x01000193) ^ codes[index]!;
  // The high bits choose the place in the filter.
  return Math.imul(hash, 0x9e3779b1) >>> 0;
}

function sameWindow({ form, at }: { form: Form; at: number }, codes: Uint8Array, from: number): boolean {
  for (let index = 0; index < WINDOW; index++)
    if (form.codes[at + index] !== codes[from + index]) return false;
  return true;
}

// What this process knows

const ours = new Secrets();
let shared: { file: string; read: number } | undefined;

/** Learns a secret of this run. Whoever else takes part in it learns it, too, before anything else can happen. */
export function know(secret: string): void {
  if (!ours.add(secret) || !shared) return;
  try {
    appendFileSync(shared.file, `${JSON.stringify(secret)}\n`, { mode: 0o600 });
  } catch {
    // The run is over, or its disk is full: this process knows it all the same.
  }
}

/**
 * Learns the secrets that an environment holds: of the variables whose names say so, and of all those that a driver is
 * given, since nobody knows what they are for.
 * @param given names, comma separated, as OPENSHELL_DRIVER_ENV has them
 */
export function knowEnvironment(
  given: string,
  environment: Record<string, string | undefined> = process.env,
): void {
  for (const secret of secretsIn(environment, given)) ours.add(secret);
}

/** The values of variables whose names say that they are secrets, or that are named in `given`, comma separated. */
export function secretsIn(environment: Record<string, string | undefined>, given = ""): string[] {
  const named = new Set(given.split(",").map((name) => name.trim()));
  return Object.entries(environment).flatMap(([name, value = ""]) =>
    (named.has(name) || SECRET_NAME.test(name)) && value.length >= LEAST_SECRET ? [value] : [],
  );
}

/**
 * Shares what is known with the other processes of a run, by a file in its private folder that is removed with it. What a
 * process learns it has to keep from logs and reports that another one writes.
 */
export function shareSecrets(folder: string): void {
  shared = { file: join(folder, "secrets"), read: 0 };
  learnShared();
}

/** Learns what others have learnt since it was last looked. */
function learnShared(): void {
  if (!shared) return;
  // Nobody has learnt anything, or the run is over.
  const { size } = statSync(shared.file, { throwIfNoEntry: false }) ?? { size: 0 };
  if (size <= shared.read) return;
  const descriptor = openSync(shared.file, "r");
  try {
    const bytes = Buffer.alloc(size - shared.read);
    const length = readSync(descriptor, bytes, 0, bytes.length, shared.read);
    const whole = bytes.subarray(0, length).lastIndexOf("\n") + 1;
    shared.read += whole;
    for (const line of bytes.toString("utf8", 0, whole).split("\n")) if (line) ours.add(JSON.parse(line));
  } catch {
    // What looks like a secret is taken out all the same.
  } finally {
    closeSync(descriptor);
  }
}

// What secrets look like

/** What they look like wherever they are, in words that begin with this and hold it. `$1` is what may stay. */
const KEY = /-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|$)/g;
const DOTTED = /[\w.-]{13,}/g;
const NAMED = String.raw`(?:token|secret|password|passwd|passphrase|authorization|api[_-]?key|access[_-]?key)`;
const NO_VALUE = String.raw`(?!<|\\?["']|(?:bearer|basic)\s|(?:true|false|null|undefined)\b)`;

/** Each is a bounded look from any place of a text, so that no text takes longer than in proportion to its length. */
const SHAPES: [RegExp, string][] = [
  [/\b(bearer|basic)\s{1,8}[\w.~+/=-]{8,}/gi, `$1 ${REDACTED}`],
  [/\b(?:gh[pousr]_|github_pat_|glpat-|xox[abprs]-|sk-|nvapi-)[\w-]{16,}/g, REDACTED],
  [/\bAKIA[0-9A-Z]{16}\b/g, REDACTED],
  // The user information of an address.
  [/(\b[a-z][a-z0-9+.-]{0,20}:\/\/)[^\s/@:]{1,200}:[^\s/@]{1,1000}@/gi, `$1${REDACTED}@`],
  // `password=…`, `"token": "…"`, `--api-key …`: in a log, a command line or a body.
  [
    new RegExp(
      String.raw`(${NAMED}\\?["']?\s{0,8}(?:=|:\s)\s{0,8}\\?["']?)${NO_VALUE}[^\s"',;}&\\]{4,}`,
      "gi",
    ),
    `$1${REDACTED}`,
  ],
  [
    /((?<![\w-])--[\w-]{0,64}(?:token|secret|password|passwd|passphrase|api-key|access-key)\s{1,8})(?![-<])[^\s"',]{4,}/gi,
    `$1${REDACTED}`,
  ],
];
/** None of the shapes can be in a text without one of these: a look that is cheap, since most texts have none. */
const SUSPICIOUS =
  /eyJ|bearer|basic|PRIVATE KEY|gh[pousr]_|github_pat_|glpat-|xox|sk-|nvapi-|AKIA|:\/\/|token|secret|passw|passphrase|authorization|(?:api|access)[_-]?key/i;

/** Takes all that is known to be secret, and all that looks like it, out of a text. */
export function withoutSecrets(text: string, more?: Secrets): string {
  learnShared();
  let clean = text;
  const isSuspicious = SUSPICIOUS.test(text);
  if (isSuspicious) clean = clean.replace(KEY, "<private key>").replace(DOTTED, withoutToken);
  clean = ours.redact(clean);
  if (more) clean = more.redact(clean);
  if (isSuspicious) for (const [shape, instead] of SHAPES) clean = clean.replace(shape, instead);
  return clean;
}

/** A word with dots, of which segments may be a JWT: two or three, the first of which begins with `{"` in base64. */
function withoutToken(word: string): string {
  if (!word.includes("eyJ")) return word;
  const segments = word.split(".");
  for (let index = 0; index + 1 < segments.length; index++) {
    const segment = segments[index]!;
    const begin = segment.indexOf("eyJ");
    if (begin < 0 || segment.length - begin < 11 || segments[index + 1] === "") continue;
    segments.splice(index, 3, `${segment.slice(0, begin)}<token>`);
  }
  return segments.join(".");
}
