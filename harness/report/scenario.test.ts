// SPDX-License-Identifier: Apache-2.0

import { ROOT } from "../base/root.ts";
import { expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { type About, finding } from "./scenario.ts";
import { leaveOut } from "./leave-out.ts";

// Programs are started here, which takes its time on a busy machine.
setDefaultTimeout(60_000);

test.each([
  ['expect(received).toBe(expected)\n\nExpected: "READY"\nReceived: "STARTING"', '"READY"', '"STARTING"'],
  ["expected NOT_FOUND\n     saw INTERNAL: no", "NOT_FOUND", "INTERNAL: no"],
  [
    'expect(received).toEqual(expected)\n\n  {\n-   "code": "OK",\n-   "count": 1,\n+   "code": "INTERNAL",\n    "where": "here",\n  }\n\n- Expected  - 2\n+ Received  + 1\n',
    '"code": "OK", "count": 1',
    '"code": "INTERNAL"',
  ],
])("of %j it tells what was expected and what was seen", (message, expected, seen) => {
  expect(finding(message)).toEqual({ expected, seen });
});

test("lines about the sandboxes of other scenarios are left out, and about unknown ones are not", () => {
  const [mine, others, unknown] = [1, 2, 3].map((digit) => `46b9b912-ca4c-483e-87c0-00000000000${digit}`);
  const lines = () => [
    "INFO Starting",
    `INFO made sandbox_id=${mine}`,
    `INFO made sandbox_id=${others}`,
    `WARN cannot make sandbox_id=${unknown}`,
    `INFO ${others} makes room for ${mine}`,
  ];
  const result = {
    sandboxes: [mine!],
    logs: { gateway: lines(), driver: lines() },
    engine: [`openshell-default--a-${others} running`, `openshell-default--b-${mine} running`],
  };
  leaveOut(new Set([others!]), result);
  const kept = lines().filter((_, index) => index !== 2);
  expect(result.logs).toEqual({ gateway: kept, driver: kept });
  expect(result.engine).toEqual([`openshell-default--b-${mine} running`]);
});

test("a token that an assertion holds is neither printed nor written to bun's own report", async () => {
  const folder = mkdtempSync(join(tmpdir(), "token-"));
  const token = ["eyJhbGciOiJFZERTQSJ9", "eyJzdWIiOiJ4In0", "c2lnbmF0dXJl"];
  // Put together where it runs: bun prints the source around what fails.
  const source = `
    import { expect, test } from "bun:test";
    import { recorded } from "${join(import.meta.dir, "scenario.ts")}";
    const about = { suite: "s", id: "XX-01", title: "XX-01 t", file: "f", line: 1 };
    const token = ${JSON.stringify(token)}.join(".");
    test("XX-01 fails", () => recorded(about, async () => expect(token).toBe("")));
    test("XX-02 fails", () => recorded(about, async () => expect({ token }).toEqual({ token: "" })));`;
  writeFileSync(join(folder, "x.test.ts"), source);
  const args = ["test", "--reporter=junit", "--reporter-outfile=junit.xml"];
  const child = Bun.spawn([process.execPath, ...args], { cwd: folder, stdout: "pipe", stderr: "pipe" });
  const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  const written = readFileSync(join(folder, "junit.xml"), "utf8");
  rmSync(folder, { recursive: true });
  expect(out + err).toContain(" 2 fail");
  expect(out + err + written).not.toContain(token.join("."));
  expect(out + err).toContain("<token>");
  expect(written).toContain("&lt;token&gt;");
});

test("of a test whose title does not begin with an id nothing is recorded", async () => {
  const source = `
    import { recorded } from "${join(import.meta.dir, "scenario.ts")}";
    import { waitingEntries } from "${join(import.meta.dir, "record.ts")}";
    for (const id of ["XX-01", "stdin", "XX", "x-1"])
      await recorded({ suite: "s", id, title: id + " t", file: "f", line: 1 }, async () => {});
    console.log(JSON.stringify(waitingEntries().map(({ kind, scenario }) => [kind, scenario.id])));`;
  // In a process of its own: what this one records is in its report.
  const child = Bun.spawn([process.execPath, "-e", source], { stdout: "pipe", stderr: "inherit" });
  expect(await child.stdout.json()).toEqual([
    ["running", "XX-01"],
    ["scenario", "XX-01"],
  ]);
});

test.each(["plain", "with (brackets), a blank", "with: a colon:1:2", "per%20cent"])(
  "a scenario's file and line are found in a folder that is named: %s",
  async (name) => {
    const folder = join(mkdtempSync(join(tmpdir(), "where-")), name);
    mkdirSync(folder);
    const source = `
      import { aboutCaller } from "${join(import.meta.dir, "scenario.ts")}";
      console.log(JSON.stringify(aboutCaller("XX-01 t", "")));`;
    writeFileSync(join(folder, "x.ts"), source);
    const child = Bun.spawn([process.execPath, join(folder, "x.ts")], { stdout: "pipe", stderr: "inherit" });
    const { suite, file, line } = (await child.stdout.json()) as About;
    expect({ suite, file: resolve(ROOT, file), line }).toEqual({
      suite: name,
      file: join(folder, "x.ts"),
      line: 3,
    });
    rmSync(join(folder, ".."), { recursive: true });
  },
);
