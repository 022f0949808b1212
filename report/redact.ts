// SPDX-License-Identifier: Apache-2.0

/**
 * Keeps secrets out of what leaves the machine. A secret is known by the field that it is in, by what it looks like, or
 * because it is the value of such a field elsewhere in the same results: an error message may repeat a token.
 */
import type { Results } from "./model.ts";

const REDACTED = "<redacted>";

/** Names of fields, variables and flags that hold secrets. `secret_name` and `token_file` only name one. */
const SECRET_NAME =
  /(?:token|secret|password|passwd|passphrase|credentials?|authorization|cookie|private[_-]?key|api[_-]?key|access[_-]?key)s?$/i;
/** Fields whose values are a user's own: their names may be told, their values may be secrets. */
const ENVIRONMENT = /^(?:environment|env|envs)$/i;

/** What secrets look like anywhere in a text. `$1` is what may stay. */
const SHAPES: [RegExp, string][] = [
  [/eyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)?/g, "<token>"],
  [/\b(bearer|basic)\s+[\w.~+/=-]{8,}/gi, `$1 ${REDACTED}`],
  [/-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)/g, "<private key>"],
  [/\b(?:gh[pousr]_|github_pat_|glpat-|xox[abprs]-|sk-|nvapi-)[\w-]{16,}/g, REDACTED],
  [/\bAKIA[0-9A-Z]{16}\b/g, REDACTED],
  // The user information of an address.
  [/(\b[a-z][a-z0-9+.-]*:\/\/)[^\s/@:]+:[^\s/@]+@/gi, `$1${REDACTED}@`],
  // `password=…`, `"token": "…"`, `--api-key …`: in a log, a command line or a body.
  [
    /((?:--)?\b[\w-]*(?:token|secret|password|passwd|passphrase|authorization|api[_-]?key|access[_-]?key)\\?["']?\s*(?:=|:\s)\s*\\?["']?)(?!<|\\?["']|(?:bearer|basic)\s|(?:true|false|null|undefined)\b)[^\s"',;}&\\]{4,}/gi,
    `$1${REDACTED}`,
  ],
  [
    /(--[\w-]*(?:token|secret|password|passwd|passphrase|api-key|access-key)\s+)(?![-<])[^\s"',]{4,}/gi,
    `$1${REDACTED}`,
  ],
];
/** None of the shapes can be in a text without one of these: a look that is cheap, since most texts have none. */
const SUSPICIOUS =
  /eyJ|bearer|basic|PRIVATE KEY|gh[pousr]_|github_pat_|glpat-|xox|sk-|nvapi-|AKIA|:\/\/|token|secret|passw|passphrase|authorization|(?:api|access)[_-]?key/i;

/** A shorter value of a secret field may be a common word; texts would be full of holes. */
const LEARNT_LENGTH = 8;

/**
 * The same results without secrets.
 * @param known secrets that the caller knows of, besides those that can be found in the results.
 */
export function redactResults(results: Results, known: string[] = []): Results {
  const learnt = new Set(known.filter((secret) => secret.length >= LEARNT_LENGTH));
  for (const { request, responses, events } of results.calls) {
    learn(request, learnt);
    learn(responses, learnt);
    learn(events, learnt);
  }
  const values = [...learnt].toSorted((a, b) => b.length - a.length);
  return redacted(results, textRedactor(values)) as Results;
}

/**
 * The values of environment variables whose names say that they are secrets: what a program may have printed. Those that
 * may be common words are left out.
 */
export const secretsIn = (environment: Record<string, string | undefined>): string[] =>
  Object.entries(environment).flatMap(([name, value = ""]) =>
    SECRET_NAME.test(name) && value.length >= LEARNT_LENGTH ? [value] : [],
  );

/** Collects the values of secret fields, wherever they are in `value`. */
function learn(value: unknown, into: Set<string>, secret = false): void {
  if (typeof value === "string") {
    const isOne = secret && value.length >= LEARNT_LENGTH && !/^<.*>$/.test(value);
    if (isOne) into.add(value);
    return;
  }
  if (typeof value !== "object" || value === null) return;
  if (Array.isArray(value)) {
    for (const item of value) {
      const [, name = "", content = ""] = (typeof item === "string" && /^([\w.-]+)=(.*)$/s.exec(item)) || [];
      if (SECRET_NAME.test(name)) learn(content, into, true);
      else learn(item, into, secret);
    }
    return;
  }
  for (const [name, field] of Object.entries(value)) learn(field, into, secret || isSecret(name));
}

const secretNames = new Map<string, boolean>();

/** Whether a field of that name holds a secret. Names are few and come often. */
function isSecret(name: string): boolean {
  let known = secretNames.get(name);
  if (known === undefined) secretNames.set(name, (known = SECRET_NAME.test(name)));
  return known;
}

/** Takes these values, and all that looks like a secret, out of a text. */
export function textRedactor(values: string[]): (text: string) => string {
  // The same few texts come again and again.
  const seen = new Map<string, string>();
  return (text) => {
    let clean = seen.get(text);
    if (clean !== undefined) return clean;
    clean = text;
    for (const value of values) if (clean.includes(value)) clean = clean.replaceAll(value, REDACTED);
    if (SUSPICIOUS.test(clean)) for (const [shape, instead] of SHAPES) clean = clean.replace(shape, instead);
    if (text.length < 200 && seen.size < 10_000) seen.set(text, clean);
    return clean;
  };
}

type Role = "plain" | "secret" | "environment";

function redacted(value: unknown, text: (text: string) => string, role: Role = "plain"): unknown {
  if (typeof value === "string") {
    if (role === "plain" || value === "") return text(value);
    if (/^<.*>$/.test(value)) return value;
    // `NAME=value`: the name may stay.
    const [, name] = role === "environment" ? (/^([\w.-]+)=/.exec(value) ?? []) : [];
    return name ? `${name}=${REDACTED}` : REDACTED;
  }
  if (typeof value !== "object" || value === null)
    return role === "secret" && value !== null ? REDACTED : value;
  if (Array.isArray(value)) return redactedList(value, text, role);
  const kept: Record<string, unknown> = {};
  for (const [name, field] of Object.entries(value))
    kept[text(name)] = redacted(field, text, roleOf(name, role));
  return kept;
}

/** A list; in a command line, what follows a flag of a secret is one. */
function redactedList(list: unknown[], text: (text: string) => string, role: Role): unknown[] {
  return list.map((item, index) => {
    const before = list[index - 1];
    const isValue = typeof before === "string" && /^--?[\w-]+$/.test(before) && isSecret(before);
    return redacted(item, text, isValue && typeof item === "string" ? "secret" : role);
  });
}

function roleOf(name: string, role: Role): Role {
  if (role !== "plain") return role;
  if (isSecret(name)) return "secret";
  return ENVIRONMENT.test(name) ? "environment" : "plain";
}
