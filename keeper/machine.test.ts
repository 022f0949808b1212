// SPDX-License-Identifier: Apache-2.0

/** Machines that are not like ours: a proxy, a checkout or a disk of somebody else's, names that no shell likes. */
import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { exemptLoopback } from "./environment.ts";

setDefaultTimeout(60_000);

const ROOT = join(import.meta.dir, "..");
const folder = mkdtempSync(join(tmpdir(), "mc-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const environment = (runs: string): Record<string, string> => ({
  PATH: process.env.PATH!,
  HOME: process.env.HOME!,
  OPENSHELL_E2E_RUN_DIR: join(folder, runs),
  OPENSHELL_E2E_REPORTS: join(folder, `${runs}-reports`),
});

/** Runs bun in a folder to its end. */
async function bun(args: string[], cwd: string, env: Record<string, string>) {
  const child = Bun.spawn([process.execPath, ...args], { cwd, env, stdout: "pipe", stderr: "pipe" });
  const text = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, output: text.join("") };
}

/** A proxy that nobody serves, under every name by which a program looks for one. */
const PROXIED = Object.fromEntries(
  ["http_proxy", "https_proxy", "all_proxy", "grpc_proxy"].flatMap((name) =>
    [name, name.toUpperCase()].map((each) => [each, "http://127.0.0.1:9"]),
  ),
);

test.each([
  ["a stack", ["test", "external-podman", "-t", "SM-01"]],
  ["a gateway's health port", ["test", "gateway-adapter", "-t", "GA-105"]],
  ["a stack under load", ["soak", "--sandboxes", "1"]],
  ["a driver that is checked", ["check", "--only", "DC-40"]],
])("no proxy is asked for what is on this machine: %s", async (_, args) => {
  const { code, output } = await bun(["harness.ts", ...args], ROOT, {
    ...environment("proxied"),
    ...PROXIED,
    no_proxy: "example.org",
  });
  expect(code, output).toBe(0);
});

test("a command under `with` keeps its proxy, but not for the gateway", async () => {
  const print = 'echo "$http_proxy $no_proxy $NO_PROXY"';
  const env = { ...environment("proxied"), ...PROXIED, no_proxy: "example.org" };
  const { output } = await bun(["harness.ts", "with", "--", "sh", "-c", print], ROOT, env);
  const hosts = "example.org,127.0.0.1,localhost,::1";
  expect(output).toContain(`http://127.0.0.1:9 ${hosts} ${hosts}\n`);
});

test.each([
  ["no proxy is set", {}],
  ["nothing is to be proxied", { http_proxy: "http://proxy:1", no_proxy: "*", NO_PROXY: "*" }],
])("the environment stays as it is where %s", (_, before: NodeJS.ProcessEnv) => {
  const env = { ...before };
  exemptLoopback(env);
  expect(env).toEqual(before);
});
