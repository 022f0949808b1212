// SPDX-License-Identifier: Apache-2.0

/**
 * Keeps secrets out of results. A secret is known by the field that it is in, by what it looks like, because it is the
 * value of such a field elsewhere in the same results, or because the run knows it: an error message may repeat a token.
 */
import type { Results } from "./model.ts";
import { readable } from "../base/readable.ts";
import { LEAST_SECRET, REDACTED, SECRET_NAME, Secrets } from "../base/secrets.ts";

/** Fields whose values are a user's own: their names may be told, their values may be secrets. */
const ENVIRONMENT = /^(?:environment|env|envs)$/i;

/** The same results without secrets, and with every text as it may be shown: see `readable`. */
export function redactResults(results: Results): Results {
  const learnt = new Set<string>();
  for (const { request, responses, events } of results.calls) {
    learn(request, learnt);
    learn(responses, learnt);
    learn(events, learnt);
  }
  const secrets = new Secrets(learnt);
  // The same few texts come again and again.
  const seen = new Map<string, string>();
  const text = (raw: string): string => {
    let clean = seen.get(raw);
    if (clean !== undefined) return clean;
    clean = readable(raw, secrets);
    if (raw.length < 200 && seen.size < 10_000) seen.set(raw, clean);
    return clean;
  };
  return redacted(results, text) as Results;
}

/** Collects the values of secret fields, wherever they are in `value`. */
function learn(value: unknown, into: Set<string>, secret = false): void {
  if (typeof value === "string") {
    const isOne = secret && value.length >= LEAST_SECRET && !/^<.*>$/.test(value);
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
