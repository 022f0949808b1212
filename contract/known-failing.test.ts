// SPDX-License-Identifier: Apache-2.0

import { expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Check } from "./check.ts";
import { judge } from "./judge.ts";
import { findKnown, type Known, readKnown } from "./known-failing.ts";
import type { Outcome, Verdict } from "./runner.ts";
import type { Identity } from "./versions.ts";

const entry: Known = { check: "DC-30", driver: "podman", until: "0.0.112", why: "it answers INTERNAL" };
const real = { name: "podman", version: "0.0.112-dev.7+g2f7fb65" } as Identity;

function read(text: string): Known[] {
  const folder = mkdtempSync(join(tmpdir(), "known-"));
  try {
    const file = join(folder, "known-failing.toml");
    writeFileSync(file, text);
    return readKnown(new Set(["DC-30"]), file);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const outcome = (verdict: Verdict, left: string[] = []): Outcome => ({
  check: { id: "DC-30" } as Check,
  verdict,
  reason: verdict === "pass" ? "" : "expected ALREADY_EXISTS\n     saw INTERNAL",
  evidence: [],
  left,
  ms: 1,
});

test("an entry is read as it is written", () => {
  const text = `[[known]]\ncheck = "DC-30"\ndriver = "podman"\nuntil = "0.0.112"\nwhy = "it answers INTERNAL"\n`;
  expect(read(text)).toEqual([entry]);
  expect(read("")).toEqual([]);
});

test.each([
  ["a check that does not exist", `check = "DC-999"\ndriver = "x"\nwhy = "y"`, "there is no check DC-999"],
  ["no reason", `check = "DC-30"\ndriver = "x"`, "why is missing"],
  [
    "a field that nobody knows",
    `check = "DC-30"\ndriver = "x"\nwhy = "y"\nversion = "1"`,
    "unknown field version",
  ],
  [
    "a version that is none",
    `check = "DC-30"\ndriver = "x"\nwhy = "y"\nuntil = "now"`,
    "until is not a version",
  ],
])("an entry with %s is refused, with the file's name", (_, fields, says) => {
  expect(() => read(`[[known]]\n${fields}\n`)).toThrow(says);
  expect(() => read(`[[known]]\n${fields}\n`)).toThrow("known-failing.toml");
});

test("a file that is no TOML is refused in one line", () => {
  expect(() => read("[[known")).toThrow(/^[^\n]*known-failing\.toml: [^\n]+$/);
});

test("an entry speaks of its driver alone, in its versions, builds between releases included", () => {
  expect(findKnown([entry], "DC-30", real)).toBe(entry);
  expect(findKnown([entry], "DC-31", real)).toBeUndefined();
  expect(findKnown([entry], "DC-30", { ...real, name: "docker" })).toBeUndefined();
  expect(findKnown([entry], "DC-30", { ...real, version: "0.0.113" })).toBeUndefined();
  expect(
    findKnown([{ ...entry, since: "0.0.112" }], "DC-30", { ...real, version: "0.0.111" }),
  ).toBeUndefined();
  expect(findKnown([entry], "DC-30", { ...real, version: "unknown" })).toBeUndefined();
});

test("the fake has no excuses", () => {
  expect(findKnown([entry], "DC-30", { ...real, version: "0.0.112+fake" })).toBeUndefined();
});

test("a listed failure is known, with the reason why and what was seen", () => {
  const judged = judge(outcome("fail"), [entry], real);
  expect(judged.verdict).toBe("known");
  expect(judged.reason).toContain("it answers INTERNAL");
  expect(judged.reason).toContain("saw INTERNAL");
});

test("a listed check that passes is a failure: the list is no longer true", () => {
  const judged = judge(outcome("pass"), [entry], real);
  expect(judged.verdict).toBe("fail");
  expect(judged.reason).toContain("take it out of scenarios/known-failing.toml");
});

test("a check that passes and leaves something behind has failed, unless that is known", () => {
  expect(judge(outcome("pass", ["volume x"]), [], real).verdict).toBe("fail");
  expect(judge(outcome("pass", ["volume x"]), [entry], real).verdict).toBe("known");
});

test("what is not listed, and an error, stay what they are", () => {
  expect(judge(outcome("fail"), [], real).verdict).toBe("fail");
  expect(judge(outcome("pass"), [], real).verdict).toBe("pass");
  expect(judge(outcome("error"), [entry], real).verdict).toBe("error");
});
