// SPDX-License-Identifier: Apache-2.0

/** The settings of a run: flags, environment variables, and what may be wrong with a value. */
import { accessSync, constants, existsSync, statSync } from "node:fs";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { driverProblem, fromHere } from "./command.ts";
import { HarnessError } from "./errors.ts";
import { socketPath, socketProblem } from "./socket.ts";
import { clipped } from "./text.ts";

/** The name under which the driver is configured: not one that a gateway build reserves for its own drivers. */
export const DRIVER_NAME = "external-podman";

export const PLACES = ["gateway", "driver", "engine", "supervisor"] as const;

/** The four places that a real program or a fake can take. */
export type Place = (typeof PLACES)[number];

type Kind =
  | "program"
  | "command"
  | "path"
  | "folder"
  | "checkout"
  | "socket"
  | "places"
  | "seconds"
  | "count"
  | "flag"
  | "text";

/** Every setting: its flag is `--name`, its field the name in camel case. A flag wins over the environment. */
// prettier-ignore
export const SETTINGS = [
  // name             environment                     kind       default  meaning
  ["gateway-bin",     "OPENSHELL_GATEWAY_BIN",        "program", "",      "the real gateway, openshell-gateway"],
  ["driver-bin",      "OPENSHELL_DRIVER_BIN",         "program", "",      "the real Podman driver, openshell-driver-podman"],
  ["driver-cmd",      "OPENSHELL_DRIVER_CMD",         "command", "",      "any driver: its command line, with placeholders such as {socket}"],
  ["driver-env",      "OPENSHELL_DRIVER_ENV",         "text",    "",      "names of environment variables, comma separated, that the driver may see"],
  ["cli-bin",         "OPENSHELL_BIN",                "program", "",      "the openshell CLI, handed on by `with`"],
  ["repo",            "OPENSHELL_REPO",               "checkout","",      "a built upstream checkout in which to find all of the above"],
  ["podman-socket",   "OPENSHELL_PODMAN_SOCKET",      "socket",  "",      "a running Podman API service to use as the engine"],
  ["sandbox-image",   "OPENSHELL_SANDBOX_IMAGE",      "text",    "",      "the image of sandboxes on a real engine"],
  ["supervisor-image","OPENSHELL_SUPERVISOR_IMAGE",   "text",    "",      "the image with the real supervisor, openshell-sandbox"],
  ["require",         "OPENSHELL_E2E_REQUIRE",        "places",  "",      "places that must be real, comma separated, else exit 2"],
  ["fake",            "OPENSHELL_E2E_FAKE",           "places",  "",      "places that must be fake, comma separated"],
  ["stop-timeout",    "OPENSHELL_E2E_STOP_TIMEOUT",   "seconds", "1",     "how long the driver lets a sandbox stop by itself, in seconds"],
  ["run-dir",         "OPENSHELL_E2E_RUN_DIR",        "folder",  "",      "where runs keep sockets and state; short, private, default in memory or the temporary folder"],
  ["reports",         "OPENSHELL_E2E_REPORTS",        "path",    "reports", "where a run leaves its results and its logs"],
  ["parallel",        "OPENSHELL_E2E_PARALLEL",       "count",   "",      "scenarios at a time; default 6, or 1 with a real gateway or engine (checks: 5, or 1)"],
  ["verbose",         "OPENSHELL_E2E_VERBOSE",        "flag",    "",      "1 shows what the programs of a test run write, as they write it"],
  ["trace",           "OPENSHELL_E2E_TRACE",          "flag",    "",      "1 shows the calls between gateway and driver, as they end"],
  ["attach",          "OPENSHELL_E2E_ATTACH",         "flag",    "1",     "`bun test` and `with` use a stack that `bun harness.ts up` keeps; 0 never does"],
] as const satisfies readonly (readonly [string, string, Kind, string, string])[];

type CamelCase<S extends string> = S extends `${infer A}-${infer B}` ? `${A}${Capitalize<CamelCase<B>>}` : S;

/** The settings of a run, each as text; empty when unset. */
export type Settings = Record<CamelCase<(typeof SETTINGS)[number][0]>, string>;

const camelCase = (name: string): string =>
  name.replace(/-(.)/g, (_, letter: string) => letter.toUpperCase());

/** Flags that a verb has beside the settings. One that is given several times is a list, a line each. */
export type OwnFlags = Record<string, { type: "string" | "boolean"; short?: string; multiple?: boolean }>;

/**
 * Reads the settings from flags and environment.
 * @returns the settings, the arguments that are no flags, and what the verb's own flags say.
 * @throws HarnessError that names the setting, for an unknown flag or a value that cannot be right.
 */
export function readSettings(
  argv: string[] = [],
  env: NodeJS.ProcessEnv = process.env,
  ownFlags: OwnFlags = {},
) {
  const options = Object.fromEntries(SETTINGS.map(([name]) => [name, { type: "string" as const }]));
  let parsed;
  try {
    parsed = parseArgs({
      args: argv,
      options: { ...options, ...ownFlags },
      allowPositionals: true,
      strict: true,
      tokens: true,
    });
  } catch (error) {
    const [sentence = ""] = (error as Error).message.split(/\.\s/, 1);
    throw new HarnessError(`${clipped(sentence)}. See \`bun harness.ts help\``);
  }
  checkFlags(parsed.tokens, ownFlags);
  const settings = {} as Record<string, string>;
  for (const [name, variable, kind, fallback] of SETTINGS) {
    const flag = parsed.values[name];
    const value = (typeof flag === "string" ? flag : env[variable])?.trim() || fallback;
    const problem = value && VALUE_CHECKS[kind](value);
    if (problem) {
      const given = typeof flag === "string" ? `--${name}` : variable;
      throw new HarnessError(`${given}: ${problem}: ${clipped(value)}`);
    }
    settings[camelCase(name)] = value && settle(kind, value);
  }
  for (const [flag, place] of Object.entries(SEATS))
    if (parsed.values[flag]) refuseFaked(`--${flag}`, place, settings as Settings);
  const own = Object.keys(ownFlags).flatMap((name) => {
    const value = parsed.values[name];
    return value === undefined ? [] : [[name, value === true ? "1" : [value].flat().join("\n")] as const];
  });
  return { settings: settings as Settings, args: parsed.positionals, own: Object.fromEntries(own) };
}

/** In characters: a flag goes on to other processes, and the system takes arguments and variables of 128 KiB. */
const LONGEST_VALUE = 32_768;

/** @throws HarnessError for a flag that says nothing or too much, or that is given twice where one value counts. */
function checkFlags(
  tokens: { kind: string; name?: string; rawName?: string; value?: string | undefined }[],
  ownFlags: OwnFlags,
): void {
  const seen = new Set<string>();
  for (const { kind, name = "", rawName = "", value } of tokens) {
    if (kind !== "option") continue;
    if (value?.trim() === "") throw new HarnessError(`${rawName}: a value was expected, and it is empty`);
    if ((value?.length ?? 0) > LONGEST_VALUE)
      throw new HarnessError(
        `${rawName}: it has ${value!.length} characters, and ${LONGEST_VALUE} is the most`,
      );
    if (seen.has(name) && !ownFlags[name]?.multiple)
      throw new HarnessError(`${rawName}: it is given more than once, and one value counts`);
    seen.add(name);
  }
}

/** Settings as another process of ours reads them. */
export const asEnvironment = (settings: Settings): Record<string, string> =>
  Object.fromEntries(
    SETTINGS.map(
      ([name, variable]) => [variable, settings[camelCase(name) as keyof Settings]] as const,
    ).filter(([, value]) => value),
  );

/** What a value means wherever it is read: relative paths start from the folder in which it was given. */
function settle(kind: Kind, value: string): string {
  if (kind === "command") return fromHere(value);
  if (kind === "socket") return socketPath(value);
  return ["program", "path", "folder", "checkout"].includes(kind) ? resolve(value) : value;
}

/** The flags that put a real program in a place. */
const SEATS: Record<string, Place> = {
  "gateway-bin": "gateway",
  "driver-bin": "driver",
  "driver-cmd": "driver",
  "podman-socket": "engine",
  "supervisor-image": "supervisor",
};

/** @throws HarnessError when a flag names a real program for a place that is to be faked: its verdict would be the fake's. */
export function refuseFaked(flag: string, place: Place, { fake }: Settings): void {
  if (placeList(fake).includes(place))
    throw new HarnessError(
      `${flag} names a real ${place}, and OPENSHELL_E2E_FAKE puts the fake in its place: drop one`,
    );
}

const VALUE_CHECKS: Record<Kind, (value: string) => string | false> = {
  program: (path) => {
    if (!existsSync(path)) return "no such file";
    if (!statSync(path).isFile()) return "not a file";
    return !isExecutable(path) && "not executable (chmod +x)";
  },
  checkout: (path) => {
    if (!existsSync(path)) return "no such folder";
    if (!statSync(path).isDirectory()) return "not a folder";
    if (BUILT.some((program) => findBuilt(path, program))) return false;
    return (
      `none of ${BUILT.join(", ")} is in its target/release or target/debug; build them ` +
      "(cargo build -p openshell-server -p openshell-driver-podman -p openshell-cli)"
    );
  },
  command: driverProblem,
  folder: (path) => existsSync(path) && !statSync(path).isDirectory() && "not a folder",
  socket: socketProblem,
  places: (list) =>
    list.split(",").some((name) => !PLACES.includes(name.trim() as Place)) &&
    `a list over ${PLACES.join(", ")} was expected`,
  seconds: (text) => !/^\d{1,4}$/.test(text) && "a whole number of seconds was expected",
  count: (text) => !/^[1-9]\d?$/.test(text) && "a number from 1 to 99 was expected",
  flag: (text) => !/^[01]$/.test(text) && "0 or 1 was expected",
  path: () => false,
  text: () => false,
};

/** What a checkout may have built that we can use. */
const BUILT = ["openshell-gateway", "openshell-driver-podman", "openshell"] as const;

/** The path of a program that a checkout has built; empty if it has not. */
export function findBuilt(checkout: string, program: (typeof BUILT)[number]): string {
  const candidates = ["release", "debug"].map((profile) => join(checkout, "target", profile, program));
  return candidates.find((path) => existsSync(path)) ?? "";
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

export const placeList = (list: string): Place[] =>
  list
    .split(",")
    .map((name) => name.trim() as Place)
    .filter(Boolean);
