// SPDX-License-Identifier: Apache-2.0

import { schema as ctrfSchema, validate as validateCtrf } from "ctrf";
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { XmlDocument, XsdValidator } from "libxml2-wasm";
import { ctrf } from "./formats/ctrf.ts";
import { describeDiff, diff } from "./diff.ts";
import { largeExample, smallExample } from "./example.ts";
import { ANNOTATIONS, annotations, stepSummary, SUMMARY_BYTES } from "./formats/github.ts";
import { html } from "./formats/html.ts";
import { junit } from "./formats/junit.ts";
import { markdown } from "./formats/markdown.ts";
import { matrix } from "./formats/matrix.ts";
import { count, type Results, type ScenarioResult } from "./model.ts";
import { redactResults } from "./redact.ts";
import { explainOnTerminal } from "./terminal.ts";
import { shellQuoted } from "../base/text.ts";

const example = smallExample();

/** The example with one scenario changed. */
function withScenario(id: string, change: Partial<ScenarioResult>, from = smallExample()): Results {
  Object.assign(
    from.scenarios.find((scenario) => scenario.id === id)!,
    change,
  );
  from.counts = count(from.scenarios);
  return from;
}

test.each([
  ["SM-|LC-|DI-1", "'SM-|LC-|DI-1'"],
  ["it's", String.raw`'it'\''s'`],
  ["", "''"],
  ["--reports=/tmp/a-b_c", "--reports=/tmp/a-b_c"],
])("%s is quoted as a shell wants it", (argument, quoted) => {
  expect(shellQuoted(argument)).toBe(quoted);
});

test.each([
  ["hyphens", "a-"],
  ["images", "image "],
  ["line breaks", "\n"],
  ["backticks", "`x"],
  ["addresses", "https://"],
  ["paths", "/a"],
])("a reason of 400 kB of %s makes no report slow", (_, unit) => {
  const reason = `the token of :// ${unit.repeat(400_000 / unit.length)}…`;
  const results = redactResults(
    withScenario("XF-01", { reason, expected: reason, seen: reason, source: reason }),
  );
  const began = performance.now();
  for (const report of [html, junit, ctrf, markdown, stepSummary]) report(results);
  annotations(results);
  expect(performance.now() - began).toBeLessThan(10_000);
});

describe("JUnit", () => {
  const validator = (() => {
    using schema = XmlDocument.fromString(
      readFileSync(join(import.meta.dir, "fixtures", "jenkins-junit.xsd"), "utf8"),
    );
    return XsdValidator.fromDoc(schema);
  })();
  const valid = (xml: string) => {
    using document = XmlDocument.fromString(xml);
    validator.validate(document);
  };
  const text = (xml: string, path: string) => {
    using document = XmlDocument.fromString(xml);
    return document.find(path).map((node) => node.content);
  };

  test("is valid against Jenkins' schema", () => {
    valid(junit(example));
    valid(junit(largeExample(20, 300)));
    expect(() => valid(junit(example).replace("<testsuite ", "<testsuite unknown='1' "))).toThrow();
  });

  test("is valid whatever the texts hold", () => {
    const nasty = "<&>\"' ]]> \u0000\u001b[31m \ud800 \uffff 🙂";
    const xml = junit(withScenario("XF-01", { reason: nasty, title: `XF-01 ${nasty}` }));
    valid(xml);
    expect(text(xml, "//failure")[0]).toContain("<&>\"' ]]> \\x00\\x1b[31m \\ud800 \\uffff 🙂");
  });

  test("has skips with their reason, what is known to fail and what is of a newer contract among them", () => {
    expect(text(junit(example), "//skipped")).toEqual([
      "the driver does not advertise GPUs",
      "known to fail: A duplicate create answers INTERNAL, https://github.com/NVIDIA/OpenShell/issues/2352",
      "older contract: the driver has no GetResources: an older contract",
    ]);
  });

  test("has the explanation of each failure, and the stack as properties", () => {
    const xml = junit(example);
    expect(text(xml, "//testcase[failure or error]/system-out")).toHaveLength(12);
    expect(text(xml, "//testcase[starts-with(@name,'XF-01')]/system-out")[0]).toContain(
      "The driver answered StopSandbox with INTERNAL",
    );
    expect(text(xml, "//testsuite[1]/properties/property[@name='gateway']/@value")).toEqual([
      "openshell-gateway 0.0.112",
    ]);
    expect(text(xml, "//testsuite[1]/properties/property[@name='supervisor.image']/@value")[0]).toContain(
      "@sha256:9f86d0",
    );
  });

  test("counts what it holds", () => {
    const xml = junit(example);
    const attribute = (name: string) => Number(text(xml, `/testsuites/@${name}`)[0]);
    expect(attribute("tests")).toBe(text(xml, "//testcase").length);
    expect(attribute("failures")).toBe(text(xml, "//failure").length);
    expect(attribute("errors")).toBe(text(xml, "//error").length);
  });
});

describe("CTRF", () => {
  test("is valid against the published schema", () => {
    expect(Object.keys(ctrfSchema)).toContain("properties");
    expect(validateCtrf(JSON.parse(ctrf(example)))).toMatchObject({ valid: true });
    expect(validateCtrf(JSON.parse(ctrf(largeExample(20, 300))))).toMatchObject({ valid: true });
    expect(validateCtrf({ ...JSON.parse(ctrf(example)), surprise: 1 })).toMatchObject({ valid: false });
  });

  test("has counts that add up, and our verdict beside its own", () => {
    const { summary, tests } = JSON.parse(ctrf(example)).results;
    expect(summary.passed + summary.failed + summary.skipped + summary.pending + summary.other).toBe(
      summary.tests,
    );
    expect(summary).toMatchObject({ tests: 24, passed: 9, failed: 12, skipped: 2, other: 1 });
    const known = tests.find(({ name }: { name: string }) => name.startsWith("DC-30"));
    expect(known).toMatchObject({ status: "other", rawStatus: "known" });
  });
});

test("a command for a CI runner that a driver hides behind what looks like a frame is none on the terminal", () => {
  const results = withScenario("XF-01", {
    reason: "driver: bind its socket: it ended with exit code 1\n  | ::error::x",
  });
  const scenario = results.scenarios.find(({ id }) => id === "XF-01")!;
  const screen = explainOnTerminal(scenario, []);
  expect(screen).toContain(String.raw`\x3a:error::x`);
  expect(screen).not.toMatch(/^\s*::/m);
});

describe("GitHub", () => {
  test("the summary begins with what it came to, and then has the failures", () => {
    const summary = stepSummary(example);
    expect(summary.split("\n")[0]).toBe(
      "## ❌ OpenShell driver harness: 11 failures in 24 scenarios, 1 cut off",
    );
    expect(summary.indexOf("### Failures")).toBeLessThan(summary.indexOf("### The driver's contract"));
    expect(summary).toContain("**driver**: The driver answered StopSandbox with INTERNAL.");
  });

  test("a summary of ever so many failures is within GitHub's limit, and says what is missing", () => {
    const results = largeExample(2000, 20_000);
    for (const scenario of results.scenarios)
      Object.assign(scenario, { verdict: "fail", reason: "it broke\n".repeat(50) });
    const summary = stepSummary(results);
    expect(Buffer.byteLength(summary)).toBeLessThanOrEqual(SUMMARY_BYTES);
    expect(summary).toMatch(/…and [\d,]+ failures more/);
  });

  test("annotations stand at file and line, with their special characters escaped", () => {
    const results = withScenario("XF-01", {
      title: "XF-01 a, b: 100%",
      file: "scenarios/a,b.test.ts",
      line: 7,
    });
    const [first] = annotations(results);
    expect(first).toStartWith(
      "::error file=scenarios/a%2Cb.test.ts,line=7,title=XF-01 a%2C b%3A 100%25::driver: The driver answered",
    );
    expect(first).toContain("%0A");
    expect(first).not.toContain("\n");
  });

  test("no more annotations than GitHub shows; the last one counts the others", () => {
    const lines = annotations(example);
    expect(lines).toHaveLength(ANNOTATIONS);
    expect(lines.at(-1)).toBe("::error ::3 more failures; the step's summary has them all");
  });
});

describe("Markdown", () => {
  test("has the table of the driver's contract", () => {
    const text = markdown(example);
    expect(text).toContain("3 of 5 rules kept, 1 not asked.");
    expect(text).toContain("| DC-30 | a duplicate create is refused with ALREADY\\_EXISTS | known |");
  });

  test("texts cannot break out of their cell", () => {
    const results = withScenario("LC-09", { reason: "a | b\n| c `d` <script>" });
    const row = markdown(results)
      .split("\n")
      .find((line) => line.startsWith("| LC-09"))!;
    expect(row.replaceAll(String.raw`\|`, "").split("|")).toHaveLength(5);
    expect(row).not.toContain("<script>");
  });

  test("says how many scenarios -t left out, and nothing of it when there were none", () => {
    expect(markdown(example)).toContain("(167 not selected by -t)");
    expect(html(example)).toContain("<li>167 not selected by -t</li>");
    expect(junit(example)).toContain(`name="not selected by -t" value="167"`);
    const all = largeExample(3, 20);
    for (const made of [markdown, html, junit]) expect(made(all).includes("not selected by -t")).toBe(false);
  });

  test("a command can be copied, and is no column of a table", () => {
    const run = smallExample();
    run.run.command = "bun harness.ts test -t 'SM-|LC-'";
    run.stack.supervisor.image!.reference = "a|b";
    const lines = markdown(run).split("\n");
    expect(lines.find((line) => line.includes("harness.ts test"))).toStartWith(
      "`bun harness.ts test -t 'SM-|LC-'`",
    );
    expect(lines.find((line) => line.startsWith("| supervisor"))).toContain(String.raw`a\|b`);
  });

  test("a run in which everything was faked claims no more than that", () => {
    expect(markdown(largeExample(3, 20))).toContain(
      "this run proves the harness and its scenarios, not OpenShell",
    );
    expect(markdown(example)).not.toContain("proves the harness");
  });
});

describe("matrix", () => {
  const run = (gateway: string, startedAt: string, change: Partial<ScenarioResult> = {}) => {
    const results = withScenario("LC-01", change);
    results.scenarios = results.scenarios.filter(({ id }) => id.startsWith("LC-0"));
    results.stack.gateway.label = gateway;
    results.run.startedAt = startedAt;
    return results;
  };

  test("has a row for each driver and engine, and a column for each gateway, in the order of their versions", () => {
    const table = matrix([
      run("gateway 0.0.112", "2026-01-01T00:00:00Z"),
      run("gateway 0.0.97", "2026-01-01T00:00:00Z", { verdict: "fail" }),
    ]);
    const [head, , row, ...rest] = table.split("\n");
    expect(head).toBe("| driver | engine | gateway gateway 0.0.97 | gateway gateway 0.0.112 |");
    expect(row).toBe(
      "| openshell-driver-podman 0.0.112 | podman 5.4.2 (rootful) | ❌ external-podman: 1 FAIL, 5 pass, 1 skip | ✅ external-podman: 6 pass, 1 skip |",
    );
    expect(rest.some((line) => line.startsWith("|"))).toBe(false);
  });

  test("of two runs of the same combination the later counts", () => {
    const table = matrix([
      run("g", "2026-01-02T00:00:00Z"),
      run("g", "2026-01-01T00:00:00Z", { verdict: "fail" }),
    ]);
    expect(table).toContain("✅");
    expect(table).not.toContain("❌");
  });
});

describe("diff", () => {
  const scaled = (factor: number, change: (results: Results) => void = () => {}) => {
    const results = largeExample(60, 1200);
    for (const scenario of results.scenarios) scenario.ms *= factor;
    change(results);
    return results;
  };
  const base = scaled(1);

  test("of a run with itself there is none", () => {
    expect(diff(base, base)).toEqual({
      parts: [],
      verdicts: [],
      added: [],
      removed: [],
      pace: 1,
      durations: [],
      methods: [],
      worse: false,
    });
  });

  test("names the parts that differ", () => {
    const { parts } = diff(
      base,
      scaled(
        1,
        ({ stack }) => (stack.gateway = { real: true, label: "openshell-gateway 0.0.113", program: "g" }),
      ),
    );
    expect(parts).toEqual(["gateway: fake → openshell-gateway 0.0.113"]);
  });

  test("says which verdicts changed, what got worse first", () => {
    const after = scaled(1);
    withScenario("SC-006", { verdict: "pass" }, after);
    withScenario("SC-002", { verdict: "fail", reason: "expected READY" }, after);
    const found = diff(base, after);
    expect(found.verdicts.map(({ scenario, from, to }) => `${scenario.id} ${from} ${to}`)).toEqual([
      "SC-002 pass fail",
      "SC-006 fail pass",
    ]);
    expect(found.worse).toBe(true);
    expect(describeDiff(found, base, after)).toContain("FAIL");
  });

  test("a slower machine makes everything slower, which is no finding", () => {
    const found = diff(base, scaled(2.2));
    expect(found.pace).toBeCloseTo(2.2, 1);
    expect(found.durations).toEqual([]);
  });

  test("a scenario that became slower than all the others is one", () => {
    const { durations } = diff(
      base,
      scaled(1.3, (results) => (results.scenarios[0]!.ms *= 4)),
    );
    expect(durations.map(({ name }) => name.split(" ")[0])).toEqual(["SC-001"]);
  });

  test("neither noise nor what takes no time is one", () => {
    const noisy = scaled(1, ({ scenarios }) => {
      for (const [index, scenario] of scenarios.entries()) scenario.ms *= 0.85 + (index % 7) * 0.05;
    });
    expect(diff(base, noisy).durations).toEqual([]);
    const quick = (ms: number) => scaled(1, ({ scenarios }) => (scenarios[0]!.ms = ms));
    expect(diff(quick(2), quick(90)).durations).toEqual([]);
  });

  test("the noisier a run, the more a change must be", () => {
    const factors = [0.6, 0.8, 1, 1.25, 1.6];
    const noisy = (first: number) =>
      scaled(1, ({ scenarios }) => {
        for (const [index, scenario] of scenarios.entries()) scenario.ms *= factors[index % factors.length]!;
        scenarios[0]!.ms *= first;
      });
    expect(diff(base, noisy(1)).durations).toEqual([]);
    expect(diff(base, noisy(12)).durations.map(({ name }) => name.split(" ")[0])).toEqual(["SC-001"]);
  });

  test("a call whose median grew is named by its method", () => {
    const slow = scaled(1, ({ calls }) => {
      for (const call of calls) if (call.method === "StopSandbox") call.ms = (call.ms ?? 0) + 400;
    });
    expect(diff(base, slow).methods.map(({ name }) => name)).toEqual(["StopSandbox"]);
  });

  test("a failure that is only in the second run makes it worse", () => {
    const before = scaled(
      1,
      (results) => (results.scenarios = results.scenarios.filter(({ id }) => id !== "SC-006")),
    );
    expect(diff(before, base)).toMatchObject({ worse: true, added: [{ id: "SC-006" }] });
  });
});
