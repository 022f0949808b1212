// SPDX-License-Identifier: Apache-2.0

import { expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Check } from "../conformance/check.ts";
import { judge } from "../conformance/judge.ts";
import type { Outcome, Verdict } from "../conformance/runner.ts";
import type { Identity } from "../conformance/versions.ts";
import { findKnown, type Known, readKnown, scenarioIds } from "./known-failing.ts";

const entry: Known = { check: "DC-30", driver: "podman", until: "0.0.112", why: "it answers INTERNAL" };
const real = { name: "podman", version: "0.0.112-dev.7+g2f7fb65" } as Identity;

function read(text: string, kind: "check" | "scenario" = "check"): Known[] {
  const folder = mkdtempSync(join(tmpdir(), "known-"));
  try {
    const file = join(folder, "known-failing.toml");
    writeFileSync(file, text);
    return readKnown(kind, new Set(["DC-30", "DI-20"]), file);
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
  ["nobody", `check = "DC-30"\nwhy = "y"`, "driver or gateway is missing"],
  ["no subject", `driver = "x"\nwhy = "y"`, "check or scenario is missing"],
  ["two subjects", `check = "DC-30"\nscenario = "DI-20"\ndriver = "x"\nwhy = "y"`, "exclude each other"],
  ["a check's gateway", `check = "DC-30"\ngateway = "openshell-gateway"\nwhy = "y"`, "no gateway takes part"],
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
  expect(findKnown([entry], "DC-30", { driver: real })).toBe(entry);
  expect(findKnown([entry], "DC-31", { driver: real })).toBeUndefined();
  expect(findKnown([entry], "DC-30", { driver: { ...real, name: "docker" } })).toBeUndefined();
  expect(findKnown([entry], "DC-30", { driver: { ...real, version: "0.0.113" } })).toBeUndefined();
  expect(
    findKnown([{ ...entry, since: "0.0.112" }], "DC-30", { driver: { ...real, version: "0.0.111" } }),
  ).toBeUndefined();
  expect(findKnown([entry], "DC-30", { driver: { ...real, version: "unknown" } })).toBeUndefined();
});

test("the fake has no excuses", () => {
  expect(findKnown([entry], "DC-30", { driver: { ...real, version: "0.0.112+fake" } })).toBeUndefined();
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

test("a listed check that fails only now and then may pass", () => {
  const flaky: Known = { ...entry, passes: "sometimes" };
  expect(judge(outcome("pass"), [flaky], real).verdict).toBe("pass");
  expect(judge(outcome("fail"), [flaky], real).verdict).toBe("known");
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

// Scenarios

const of = (field: "driver" | "gateway", name: string): string =>
  `[[known]]\nscenario = "DI-20"\n${field} = "${name}"\nuntil = "0.0.112"\nwhy = "it hangs"\n`;

test("an entry may speak of a scenario, of the gateway's defect or the driver's", () => {
  expect(read(of("gateway", "openshell-gateway"), "scenario")).toMatchObject([{ scenario: "DI-20" }]);
  expect(read(of("driver", "podman"), "scenario")).toMatchObject([{ driver: "podman" }]);
  expect(read(of("driver", "podman"))).toEqual([]);
  expect(() => read(of("gateway", "another"), "scenario")).toThrow("gateway can be openshell-gateway");
  expect(() => read(of("driver", "x").replace("DI-20", "DI-999"), "scenario")).toThrow(
    "there is no scenario DI-999",
  );
});

test("a gateway's entry speaks of its versions, and of the fake, which has the same habits", () => {
  const known = read(of("gateway", "openshell-gateway"), "scenario");
  const found = (version: string) => findKnown(known, "DI-20", { gateway: { version } }) !== undefined;
  expect([found("0.0.112-dev.7+g2f7fb65"), found("0.0.112+fake"), found("0.0.113")]).toEqual([
    true,
    true,
    false,
  ]);
});

test("the ids of scenarios are found in their sources, also when a run does not load them", () => {
  const ids = scenarioIds();
  for (const id of ["DI-01", "DI-53", "LC-03"]) expect(ids).toContain(id);
});
