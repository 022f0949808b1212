// SPDX-License-Identifier: Apache-2.0

/** Podman's REST API in general: what requests may ask, how answers and failures look. */

/** An answer other than success, in Podman's form. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly reason: string,
    message: string,
  ) {
    super(message);
  }
}

/** Fails the request with "message: reason", or with the reason alone. */
export function fail(status: number, reason: string, message = ""): never {
  throw new ApiError(status, reason, message ? `${message}: ${reason}` : reason);
}

export const improper = (message: string, status = 500): never =>
  fail(status, "container state improper", message);

export const JSON_TYPE = { "content-type": "application/json" };

export const answer = (status: number, body: unknown): Response =>
  new Response(`${JSON.stringify(body)}\n`, { status, headers: JSON_TYPE });

export const empty = (status: number): Response => new Response(null, { status });

export async function jsonBody<Type>(request: Request): Promise<Type> {
  const text = await request.text();
  try {
    return JSON.parse(text) as Type;
  } catch {
    return fail(500, text === "" ? "EOF" : "invalid character in JSON", "decode()");
  }
}

export const flag = (query: URLSearchParams, name: string): boolean =>
  ["true", "1"].includes(query.get(name) ?? "");

/** A time-out in seconds, under the names that the API has for it. */
export function timeout(query: URLSearchParams): number | null {
  const text = query.get("timeout") || query.get("t");
  if (!text) return null;
  return /^\d+$/.test(text)
    ? Number(text)
    : fail(400, "invalid argument", `failed to parse timeout "${text}"`);
}

// Names

const NAME = /^[a-zA-Z0-9][a-zA-Z0-9_.-]*$/;

/** The form that the names of containers, volumes and networks have. */
export function checkName(name: string, what: string, status = 500): void {
  if (NAME.test(name)) return;
  fail(status, "invalid argument", `${what}: names must match [a-zA-Z0-9][a-zA-Z0-9_.-]*`);
}

// Filters

/** A filter's name, and whether a thing matches one of the values, or all of them: that is each filter's own affair. */
export type Filters<Thing> = Record<string, (thing: Thing, wanted: string[]) => boolean>;

/** Whether a thing matches all of the query's filters. A filter that `known` does not have is refused, not ignored. */
export function matcher<Thing>(query: URLSearchParams, known: Filters<Thing>): (thing: Thing) => boolean {
  const filters = Object.entries(filtersOf(query)).map(([key, values]) => {
    const test = known[key] ?? fail(500, `${key} is an invalid filter`);
    // Docker's older form is a map of value to true.
    return { test, wanted: Array.isArray(values) ? values.map(String) : Object.keys(values) };
  });
  return (thing) => filters.every(({ test, wanted }) => test(thing, wanted));
}

export function filtersOf(query: URLSearchParams): Record<string, unknown[] | Record<string, boolean>> {
  const text = query.get("filters") || "{}";
  try {
    return JSON.parse(text);
  } catch {
    return fail(500, "failed to parse parameters", `invalid filters ${text}`);
  }
}

/** Whether all of `wanted`, each "key" or "key=value", are among the labels. */
export const hasLabels = (labels: Record<string, string>, wanted: string[]): boolean =>
  wanted.every((want) => {
    const [key = "", value] = want.split(/=(.*)/s);
    return key in labels && (value === undefined || labels[key] === value);
  });
