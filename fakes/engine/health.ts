// SPDX-License-Identifier: Apache-2.0

/** Health: checked when asked, as Podman does on a host without systemd, whose timers would ask. */
import { timestamp } from "./clock.ts";
import { type Container, healthTest, processEnvironment, rootfs } from "./container.ts";
import type { Containers } from "./containers.ts";
import { fail, improper } from "./http.ts";
import { resolveProgram } from "./program.ts";

const DEFAULT_TIMEOUT_NS = 30e9;
const DEFAULT_RETRIES = 3;
const KEPT_RESULTS = 5;
const KEPT_OUTPUT = 500;

/** Runs the check once. Returns the health after it. */
export async function checkHealth(containers: Containers, container: Container): Promise<object> {
  const test = healthTest(container) ?? fail(409, "has no defined healthcheck", `container ${container.id}`);
  const { health } = container;
  if (container.status !== "running" || !health) {
    return improper(`container ${container.id} is not running`, 409);
  }
  const { Timeout = DEFAULT_TIMEOUT_NS, Retries, StartPeriod = 0 } = container.spec.healthconfig ?? {};
  const Start = timestamp();
  const check = Bun.spawn(commandOf(container, test), {
    cwd: rootfs(container),
    env: processEnvironment(container),
    stdin: "ignore",
    stdout: "pipe",
    stderr: "ignore",
    timeout: Math.max(1, Timeout / 1e6),
    killSignal: "SIGKILL",
  });
  const [output, ExitCode] = await Promise.all([check.stdout.text(), check.exited]);
  const isStarting =
    health.Status === "starting" && Date.now() - Date.parse(container.startedAt) < StartPeriod / 1e6;
  if (ExitCode === 0) Object.assign(health, { Status: "healthy", FailingStreak: 0 });
  else if (!isStarting && ++health.FailingStreak >= (Retries || DEFAULT_RETRIES)) health.Status = "unhealthy";
  const result = { Start, End: timestamp(), ExitCode, Output: output.slice(0, KEPT_OUTPUT) };
  health.Log = [...(health.Log ?? []), result].slice(-KEPT_RESULTS);
  containers.save(container);
  containers.emit(container, "health_status", {
    health_status: health.Status,
    health_failing_streak: String(health.FailingStreak),
  });
  return health;
}

/** `["CMD", program, …]`, `["CMD-SHELL", script]`, or a script in words. */
function commandOf(container: Container, test: string[]): string[] {
  const [kind, ...words] = test;
  if (kind === "CMD") return [resolveProgram(container, words[0] ?? ""), ...words.slice(1)];
  return ["/bin/sh", "-c", (kind === "CMD-SHELL" ? words : test).join(" ")];
}
