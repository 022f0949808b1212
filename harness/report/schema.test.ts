// SPDX-License-Identifier: Apache-2.0

import Ajv from "ajv";
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { largeExample, smallExample } from "./example.ts";
import type { Results } from "./model.ts";
import schema from "./results.schema.json";

const validate = new Ajv({ allErrors: true }).compile(schema);
const problems = (results: unknown) =>
  validate(results) ? [] : validate.errors!.map(({ instancePath, message }) => `${instancePath} ${message}`);

/** A copy of the small example, changed. */
function changed(change: (results: Results) => void): Results {
  const results = structuredClone(smallExample());
  change(results);
  return results;
}

test("the examples are valid results", () => {
  expect(problems(smallExample())).toEqual([]);
  expect(problems(largeExample(20, 300))).toEqual([]);
});

test.each([
  [
    "a missing list",
    (results: Results) => Reflect.deleteProperty(results, "calls"),
    "required property 'calls'",
  ],
  [
    "a verdict that there is not",
    (results: Results) => Object.assign(results.scenarios[0]!, { verdict: "ok" }),
    "/scenarios/0/verdict",
  ],
  [
    "a field that nobody documented",
    (results: Results) => Object.assign(results.run, { host: "x" }),
    "/run must NOT have additional",
  ],
  ["another format", (results: Results) => Object.assign(results, { schema: 2 }), "/schema"],
  ["a negative duration", (results: Results) => Object.assign(results.calls[0]!, { ms: -1 }), "/calls/0/ms"],
])("%s is not valid", (_, change, problem) => {
  expect(problems(changed(change)).join("\n")).toContain(problem);
});

describe("the schema and the TypeScript model say the same", () => {
  const model = interfacesOf(readFileSync(join(import.meta.dir, "model.ts"), "utf8"));
  const definitions: Record<string, Node> = {
    Results: schema as unknown as Node,
    ...(schema.definitions as unknown as Record<string, Node>),
  };

  test.each(Object.keys(model))("of %s", (name) => {
    expect(fieldsOf(definitions[name]!, definitions)).toEqual(model[name]!);
  });

  test("and every field of the schema is in the example", () => {
    const inExample = pathsOf(smallExample());
    const inSchema = Object.keys(fieldsOf(definitions.Results!, definitions, true)).map((path) =>
      path.replace("?", ""),
    );
    // All places are described alike, and only the supervisor is an image.
    const like = (path: string) => path.replace(/^stack\.\w+/, "stack.supervisor");
    expect(inSchema.filter((path) => !inExample.has(like(path)))).toEqual([]);
  });
});

interface Node {
  $ref?: string;
  properties?: Record<string, Node>;
  required?: string[];
  items?: Node;
}

/** The fields of each exported interface, a path each, with `?` after an optional one. Objects within are followed. */
function interfacesOf(source: string): Record<string, string[]> {
  const found: Record<string, string[]> = {};
  for (const [, name, body] of source.matchAll(/^export interface (\w+) \{\n([\s\S]*?)^\}/gm)) {
    const path: string[] = [];
    const fields: string[] = [];
    for (const line of body!.split("\n")) {
      const [, indent, field, optional = "", rest] = /^( +)(\w+)(\??): (.*)$/.exec(line) ?? [];
      if (!field) continue;
      path.splice(indent!.length / 2 - 1, Infinity, field);
      fields.push(`${path.join(".")}${optional}`);
      // An object on one line, or a record over a union of names.
      for (const [, inner, mark] of rest!.matchAll(/(?<=[{;] )(\w+)(\??):/g))
        fields.push(`${[...path, inner].join(".")}${mark}`);
      for (const [, key] of /Record<(.*?), /.exec(rest!)?.[1]?.matchAll(/"(\w+)"/g) ?? [])
        fields.push([...path, key].join("."));
    }
    found[name!] = fields.toSorted();
  }
  return found;
}

/** The same of the schema; what is an interface of its own is followed only when `deep`. */
function fieldsOf(node: Node, definitions: Record<string, Node>, deep: true): Record<string, true>;
function fieldsOf(node: Node, definitions: Record<string, Node>): string[];
function fieldsOf(
  node: Node,
  definitions: Record<string, Node>,
  deep?: true,
): string[] | Record<string, true> {
  const fields: string[] = [];
  const walk = (at: Node, path: string[]) => {
    const name = at.$ref?.split("/").at(-1);
    // What the model writes inside `Results`, the schema has as definitions too.
    if (name && !deep && !["Run", "Machine"].includes(name)) return;
    const target = name ? definitions[name]! : at;
    for (const [field, child] of Object.entries(target.properties ?? {})) {
      if (path.join(".") === "counts" && !deep) continue;
      fields.push(`${[...path, field].join(".")}${target.required?.includes(field) ? "" : "?"}`);
      walk(child.items ?? child, [...path, field]);
    }
  };
  walk(node, []);
  return deep ? Object.fromEntries(fields.map((field) => [field, true as const])) : fields.toSorted();
}

/** Every path that a value has, without the numbers of lists. */
function pathsOf(value: unknown, path: string[] = [], into = new Set<string>()): Set<string> {
  if (path.length > 0) into.add(path.join("."));
  if (Array.isArray(value)) for (const item of value) pathsOf(item, path, into);
  else if (typeof value === "object" && value !== null)
    for (const [name, field] of Object.entries(value)) pathsOf(field, [...path, name], into);
  return into;
}
