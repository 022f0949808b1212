// SPDX-License-Identifier: Apache-2.0

/**
 * What stands behind a driver, as far as a check must look there or interfere: list what a sandbox has, kill its
 * workload, remove it behind the driver's back, and, where it can, tell what the workload was given.
 */
import { HarnessError } from "../base/errors.ts";
import { commandProblem, programProblem, words } from "../base/command.ts";
import { shortCommand } from "../base/short-command.ts";
import { shellQuoted } from "../base/text.ts";
import { Engine, removeBelongings, type Belonging } from "../runtime/engine.ts";
import { holdsId, isSandboxId } from "../base/sandbox-id.ts";
import { Violation } from "./finding.ts";

/** What a sandbox's workload was given, as its backend and its probe tell. */
export interface Workload {
  /** Whether its compute runs. */
  running: boolean;
  /** When its compute was last started; differs after each start. */
  started: string;
  /** How it ended last; 0 while it runs for the first time. */
  exitCode: number;
  labels: Record<string, string>;
  /** The command line of the container. */
  command: string[];
  /** The container's environment as the backend shows it. */
  environment: Record<string, string>;
  /** Of the container: microseconds of CPU a period, the period, and bytes of memory. 0 is unlimited. */
  limits: { cpuQuota: number; cpuPeriod: number; memory: number };
  /** What the probe printed; unset when something else stands in the supervisor's place. */
  probe?: Probe;
}

/** What runtime/probe.sh tells of itself. */
export interface Probe {
  /** How often it was started in this workspace. */
  starts: number;
  /** What the driver gave it; unset until it was asked. */
  given?: Given;
}

export interface Given {
  environment: Record<string, string>;
  arguments: string[];
  /** The token file's mode in octal and the SHA-256 of its content; unset without a file. */
  token?: { mode: string; sha256: string };
}

/** What checks may ask of a backend. Each method is there only if this backend can do it. */
export interface Backend {
  name: string;
  /** All that there is of a sandbox, a line each. */
  list?: (id: string) => Promise<string[]>;
  /** Ends the workload as a crash would. */
  kill?: (id: string) => Promise<void>;
  /** Removes the workload, without the driver. */
  remove?: (id: string) => Promise<void>;
  /** Whether its compute runs. */
  runs?: (id: string) => Promise<boolean>;
  inspect?: (id: string) => Promise<Workload>;
  /** Has the probe tell what it was given: to be called once it has said that it was started. */
  ask?: (id: string) => Promise<void>;
  /** Whether a limit of CPU or memory is anything here: a kernel without these controllers has none, and Podman drops it. */
  limits?: () => Promise<boolean>;
}

/** How long a backend's command may take, in milliseconds. */
const COMMAND_MS = 30_000;

/** Enough for all that a probe tells of the largest environment. */
const PROBE_LINES = 10_000;

/** The label with which Podman drivers mark a sandbox's container. */
const SANDBOX_ID = "openshell.ai/sandbox-id";

interface Listed {
  Id: string;
  State: string;
  Labels: Record<string, string> | null;
}

interface Inspected {
  Id: string;
  State: { Status: string; StartedAt: string; ExitCode: number };
  Path: string;
  Args: string[];
  Config: { Labels: Record<string, string>; Env: string[] };
  HostConfig: { CpuQuota: number; CpuPeriod: number; Memory: number };
}

/** A Podman service, real or fake. Sandboxes are found by the label that carries their id. */
export function podman(engine: Engine): Backend {
  const entries = async (id: string) => {
    const query = { all: "true", filters: JSON.stringify({ label: [`${SANDBOX_ID}=${id}`] }) };
    const found = await engine.call<Listed[] | null>("GET", "containers/json", { query });
    // What is killed and removed must not depend on whether an engine knows the filter.
    return (found ?? []).filter(({ Labels }) => isSandboxId(id) && Labels?.[SANDBOX_ID] === id);
  };
  const find = async (id: string) => (await entries(id)).map(({ Id }) => Id);
  const one = async (id: string) => {
    const [container] = await find(id);
    if (!container) throw new Violation("a container of the sandbox", `podman has none with its id, ${id}`);
    return container;
  };
  const signal = async (id: string, signal: string): Promise<void> =>
    void (await engine.call("POST", `containers/${await one(id)}/kill`, { query: { signal } }));
  return {
    name: "podman",
    async list(id) {
      const containers = (await find(id)).map((container) => `container ${container.slice(0, 12)}`);
      const [volumes, secrets] = await Promise.all([engine.volumes(), engine.secrets()]);
      const mine = (kind: string, names: string[]) =>
        names.filter((name) => holdsId(name, id)).map((name) => `${kind} ${name}`);
      return [...containers, ...mine("volume", volumes), ...mine("secret", secrets)];
    },
    kill: (id) => signal(id, "SIGKILL"),
    ask: (id) => signal(id, "SIGUSR1"),
    async remove(id) {
      const containers = await find(id);
      await removeBelongings(
        engine,
        containers.map((name): Belonging => ({ kind: "container", name })),
      );
    },
    async limits() {
      const { host } = await engine.call<{ host: { cgroupControllers?: string[] | null } }>("GET", "info");
      return ["cpu", "memory"].every((controller) => host.cgroupControllers?.includes(controller));
    },
    runs: async (id) => (await entries(id)).some(({ State }) => State === "running"),
    async inspect(id) {
      const container = await one(id);
      const [seen, lines] = await Promise.all([
        engine.call<Inspected>("GET", `containers/${container}/json`),
        engine.logs(container, PROBE_LINES),
      ]);
      return {
        running: seen.State.Status === "running",
        started: seen.State.StartedAt,
        exitCode: seen.State.ExitCode,
        labels: seen.Config.Labels,
        command: [seen.Path, ...seen.Args],
        environment: fromPairs(seen.Config.Env),
        limits: {
          cpuQuota: seen.HostConfig.CpuQuota,
          cpuPeriod: seen.HostConfig.CpuPeriod,
          memory: seen.HostConfig.Memory,
        },
        probe: readProbe(lines),
      };
    },
  };
}

/**
 * A backend of commands, in which `{id}` stands for the sandbox's id; run without a shell. Each is tried, as far as that
 * does nothing: a broken one would be a verdict on the driver.
 * @throws HarnessError that names the flag of a command that cannot be run, or that fails to list a sandbox that is not.
 */
export async function commands(given: { list?: string; kill?: string; remove?: string }): Promise<Backend> {
  const run = async (command: string, id: string): Promise<string> => {
    const argv = words(command).map((word) => word.replaceAll("{id}", id));
    const named = argv.map(shellQuoted).join(" ");
    const { stdout, stderr, exitCode, ending } = await shortCommand(argv, { deadlineMs: COMMAND_MS }).catch(
      (error: Error) => {
        throw new Error(`${named}: ${error.message}`);
      },
    );
    if (exitCode !== 0) throw new Error(`${named}: ${ending}: ${stderr.toString().trim()}`);
    return stdout.toString();
  };
  const { list, kill, remove } = given;
  for (const [power, command] of Object.entries(given)) {
    if (command === undefined) continue;
    const problem = commandProblem(command) || programProblem(words(command)[0]!);
    if (problem) throw new HarnessError(`--backend-${power}: ${problem}: ${command}`);
  }
  if (list)
    await run(list, crypto.randomUUID()).catch((error: Error) => {
      throw new HarnessError(
        `--backend-list: exit code 0 was expected, also for a sandbox that is not there: ${error.message}`,
      );
    });
  return {
    name: "commands",
    ...(list && {
      list: async (id) => (await run(list, id)).split("\n").filter((line) => holdsId(line, id)),
    }),
    ...(kill && { kill: async (id) => void (await run(kill, mustBeId(id))) }),
    ...(remove && { remove: async (id) => void (await run(remove, mustBeId(id))) }),
  };
}

/** @throws Error for what a command could take for a flag, a pattern, or all there is. */
function mustBeId(id: string): string {
  if (!isSandboxId(id))
    throw new Error(`a command is given only the id of a sandbox, not ${JSON.stringify(id)}`);
  return id;
}

const fromPairs = (pairs: string[]): Record<string, string> =>
  Object.fromEntries(pairs.map((pair) => pair.split(/=(.*)/s).slice(0, 2) as [string, string]));

/** The probe's lines of the container's last start. */
function readProbe(lines: string[]): Probe | undefined {
  // Podman 4.3 puts some line ends in wrong places: no line end counts, only the words at the beginnings.
  const parts = lines.join("").split(/(?=probe (?:starts|given|token|told))/);
  const told = parts.slice(parts.findLastIndex((part) => part.startsWith("probe starts")));
  const of = (name: string) =>
    told.find((part) => part.startsWith(`probe ${name}`))?.slice(`probe ${name}`.length);
  const starts = of("starts");
  if (starts === undefined) return undefined;
  if (of("told") === undefined) return { starts: Number(starts) };
  const given = Buffer.from(of("given") ?? "", "base64")
    .toString()
    .split("\0");
  const border = given.lastIndexOf("", -2);
  const [mode = "", sha256 = ""] = (of("token") ?? "").trim().split(" ");
  return {
    starts: Number(starts),
    given: {
      arguments: given.slice(0, border),
      environment: fromPairs(given.slice(border + 1, -1)),
      token: sha256 ? { mode, sha256 } : undefined,
    },
  };
}
