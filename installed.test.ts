// SPDX-License-Identifier: Apache-2.0

/** A checkout in which nothing was installed, or something else. */
import { afterAll, expect, test } from "bun:test";
import { cpSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { shortCommand } from "./keeper/short-command.ts";

const checkout = mkdtempSync(join(tmpdir(), "fc-"));
const path = (name: string) => join(checkout, name);
for (const file of ["package.json", "bun.lock", "bunfig.toml", "installed.ts", "harness.ts", "scenarios"])
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

test("what the install itself runs passes", async () => {
  writeFileSync(path("compile.ts"), "console.error('compiled')");
  expect(await says("compile.ts")).toEqual({ said: "compiled\n", exitCode: 0 });
});
