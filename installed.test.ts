// SPDX-License-Identifier: Apache-2.0

/** A checkout in which nothing was installed, or something else. */
import { afterAll, expect, test } from "bun:test";
import { appendFileSync, cpSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { shortCommand } from "./harness/base/short-command.ts";

const checkout = mkdtempSync(join(tmpdir(), "fc-"));
const path = (name: string) => join(checkout, name);
for (const file of [
  "package.json",
  "bun.lock",
  "bunfig.toml",
  "installed.ts",
  "bun-version.ts",
  "harness.ts",
  "harness",
  "scenarios",
])
  cpSync(join(import.meta.dir, file), path(file), { recursive: true });
afterAll(() => rmSync(checkout, { recursive: true }));

const ADVICE = `openshell-e2e: bun.lock is not installed here: run \`bun install --frozen-lockfile\` in ${checkout}\n`;

async function says(...args: string[]) {
  const env = { PATH: process.env.PATH, HOME: checkout };
  const { stderr, exitCode } = await shortCommand([process.execPath, ...args], { cwd: checkout, env });
  return { said: stderr.toString(), exitCode };
}

test.each(["check", "doctor", "help", "nonsense"])("%s says in one line what to run", async (verb) => {
  expect(await says("harness.ts", verb)).toEqual({ said: ADVICE, exitCode: 2 });
});

test("bun test says it, too", async () => {
  const { said, exitCode } = await says("test", "scenarios/external-podman");
  expect(said.split("\n")).toContain(ADVICE.trim());
  expect(said).not.toContain("error:");
  expect(exitCode).toBe(2);
});

test("packages of another bun.lock count as none", async () => {
  symlinkSync(join(import.meta.dir, "node_modules"), path("node_modules"));
  symlinkSync(join(import.meta.dir, "proto"), path("proto"));
  writeFileSync(path("bun.lock"), "another");
  expect(await says("harness.ts", "help")).toEqual({ said: ADVICE, exitCode: 2 });
});

test.each([
  ["of other .proto files", "v0.0/openshell.proto"],
  ["that another compiler made of them", "compile.ts"],
])("code %s counts as none", async (_, changed) => {
  cpSync(join(import.meta.dir, "bun.lock"), path("bun.lock"));
  rmSync(path("proto"), { recursive: true });
  cpSync(join(import.meta.dir, "proto"), path("proto"), { recursive: true });
  appendFileSync(path(join("proto", changed)), "// pulled\n");
  const said = `openshell-e2e: the code of the .proto files is not that of the present ones: run \`bun run contract\` in ${checkout}\n`;
  expect(await says("harness.ts", "help")).toEqual({ said, exitCode: 2 });
});

test.each(["bun-version.ts", "harness.ts doctor", "test scenarios/external-podman"])(
  "a Bun that is too old is refused in one line, which says what to do: bun %s",
  async (line) => {
    const args = line.split(" ");
    const verb = args[0] === "test" ? args.splice(0, 1) : [];
    const { said, exitCode } = await says(...verb, "--define", `Bun.version:"1.3.12"`, ...args);
    const ours = said.split("\n").filter((line) => !/^$|^bun test v|\.test\.ts:$/.test(line));
    expect(ours).toEqual([
      expect.stringMatching(/^openshell-e2e: Bun >=\S+ is needed, and \/\S+ is 1\.3\.12\. .*npx/),
    ]);
    expect(exitCode).toBe(2);
  },
);

test("what the install itself runs passes", async () => {
  writeFileSync(path("compile.ts"), "console.error('compiled')");
  expect(await says("compile.ts")).toEqual({ said: "compiled\n", exitCode: 0 });
});
