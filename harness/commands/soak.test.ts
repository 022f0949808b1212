// SPDX-License-Identifier: Apache-2.0

import { ROOT } from "../base/root.ts";
import { expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";

// Programs are started here, which takes its time on a busy machine.
setDefaultTimeout(60_000);

const HARNESS = join(ROOT, "harness.ts");

async function soak(...args: string[]) {
  const env = { PATH: process.env.PATH!, HOME: process.env.HOME!, TMPDIR: process.env.TMPDIR };
  const child = Bun.spawn([process.execPath, HARNESS, "soak", ...args], {
    env,
    stdout: "pipe",
    stderr: "pipe",
  });
  const [output, errors] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, output, errors };
}

test("a few whole lives end with latencies, memory, descriptors, and no broken promise", async () => {
  const { code, output } = await soak("--sandboxes", "3", "--parallel", "3");
  for (const operation of ["create", "ready", "exec", "stop", "start", "delete"])
    expect(output).toMatch(new RegExp(`^${operation} +[36] `, "m"));
  for (const who of ["gateway", "driver", "keeper"])
    expect(output).toMatch(new RegExp(`^${who} +\\d+ → \\d+ MB`, "m"));
  expect(output).toEndWith("soak: 3 lives, 0 faults, 0 broken promises\n");
  expect(code).toBe(0);
});

test("chaos names its seed, breaks something, and leaves nothing", async () => {
  const { code, output } = await soak("--sandboxes", "4", "--parallel", "4", "--chaos", "--seed", "3");
  expect(output).toContain("chaos with --seed 3");
  expect(output).toMatch(/soak: 4 lives, [1-9]\d* faults?, 0 broken promises\n$/);
  expect(code).toBe(0);
});

test("SIGINT begins no more lives, and what was measured by then is told", async () => {
  const args = ["--sandboxes", "1000", "--parallel", "3", "--chaos", "--seed", "3"];
  const env = { PATH: process.env.PATH!, HOME: process.env.HOME!, TMPDIR: process.env.TMPDIR };
  const child = Bun.spawn([process.execPath, HARNESS, "soak", ...args], {
    env,
    stdout: "pipe",
    stderr: "pipe",
  });
  let output = "";
  let told = false;
  for await (const text of child.stdout.pipeThrough(new TextDecoderStream())) {
    output += text;
    if (!told && output.includes("chaos with --seed 3")) {
      told = true;
      child.kill("SIGINT");
    }
  }
  expect(output).toMatch(/soak: 3 lives, \d+ faults?, 0 broken promises\n$/);
  expect(await child.exited).toBe(130);
}, 60_000);

test.each([
  ["--sandboxes", "0"],
  ["--minutes", "soon"],
  ["--seed", "-1"],
])("%s %s is refused in one line", async (flag, value) => {
  const { code, errors } = await soak("--chaos", `${flag}=${value}`);
  expect(errors).toMatch(
    new RegExp(`^openshell-e2e: ${flag}: a number from 1 to \\d+ was expected: ${value}\\n$`),
  );
  expect(code).toBe(2);
});
