// SPDX-License-Identifier: Apache-2.0

/** Command lines that users give, of drivers above all: how they are read, and what is wrong with one. */
import { resolve } from "node:path";
import type { DriverContext } from "./stack.ts";

/** What a driver's command line may ask for, in braces. */
export const PLACEHOLDERS = [
  "socket",
  "endpoint",
  "port",
  "network",
  "podman_socket",
  "sandbox_image",
  "supervisor_image",
  "supervisor",
  "stop_timeout",
  "state",
  "tls_ca",
  "tls_cert",
  "tls_key",
] as const satisfies readonly (keyof DriverContext)[];

const PLACEHOLDER = /\{(\w+)\}/g;
const QUOTED = /"[^"]*"|'[^']*'/g;

/** The words of a command line; quotes hold words together, nothing else is special. */
export function words(line: string): string[] {
  return (line.match(/(?:"[^"]*"|'[^']*'|[^\s"'])+/g) ?? []).map((word) => word.replace(/["']/g, ""));
}

/** What is wrong with any command line; false if nothing is. */
export const commandProblem = (line: string): string | false =>
  /["']/.test(line.replace(QUOTED, "")) && "a quote is not closed";

/** What is wrong with a driver's command line; false if nothing is. */
export function driverProblem(line: string): string | false {
  const named = [...line.matchAll(PLACEHOLDER)].map(([, name = ""]) => name);
  const unknown = named.find((name) => !PLACEHOLDERS.some((known) => known === name));
  const known = PLACEHOLDERS.map((name) => `{${name}}`).join(" ");
  if (unknown !== undefined) return `unknown placeholder {${unknown}}; known are ${known}`;
  if (!named.includes("socket"))
    return "no {socket} in it: the driver is to serve on that path, which differs from run to run";
  return commandProblem(line);
}

/** The words of a driver's command line with its placeholders filled in, without a shell. */
export const fillIn = (command: string[], context: DriverContext): string[] =>
  command.map((word) => word.replace(PLACEHOLDER, (_, name: keyof DriverContext) => String(context[name])));

/** A command line whose program, if it is named by a relative path, is named from the root: another folder may start it. */
export function fromHere(line: string): string {
  const [first = ""] = /^\s*(?:"[^"]*"|'[^']*'|[^\s"'])+/.exec(line) ?? [];
  const [program = ""] = words(first);
  if (!program.includes("/") || program.includes("{")) return line;
  const path = resolve(program);
  const quote = path.includes('"') ? "'" : '"';
  return `${/[\s"']/.test(path) ? `${quote}${path}${quote}` : path}${line.slice(first.length)}`;
}
