// SPDX-License-Identifier: Apache-2.0

/** Command lines that users give, of drivers above all: how they are read, and what is wrong with one. */
import { accessSync, constants, statSync } from "node:fs";
import { resolve } from "node:path";
import { split } from "shlex";
import { shellQuoted } from "./text.ts";
import type { DriverContext } from "./driver-context.ts";

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
export type Placeholder = (typeof PLACEHOLDERS)[number];

/** A word in braces. A shell's `${NAME}` is the shell's, and braces around anything but a word are somebody's JSON. */
const PLACEHOLDER = /(?<!\$)\{(\w+)\}/g;

/**
 * The words of a command line, as Python's `shlex.split` reads one: quotes and backslashes mean what they mean to a
 * POSIX shell (except that `"\$"` keeps its backslash), and nothing is expanded.
 * @throws Error when a quote is not closed; `commandProblem` says so first.
 */
export const words = (line: string): string[] => split(line);

/** What is wrong with any command line; false if nothing is. */
export function commandProblem(line: string): string | false {
  try {
    return !words(line)[0] && "it names no program";
  } catch {
    return line.endsWith("\\") ? "nothing follows the backslash at its end" : "a quote is not closed";
  }
}

/** The names of the placeholders in a command line, known or not. */
const placeholders = (line: string): string[] =>
  words(line).flatMap((word) => [...word.matchAll(PLACEHOLDER)].map(([, name = ""]) => name));

/** Whether a driver's command line asks for any of them; an empty line asks for nothing. */
export const asksFor = (line: string, ...names: Placeholder[]): boolean =>
  placeholders(line).some((asked) => names.some((name) => name === asked));

/** What is wrong with a driver's command line; false if nothing is. */
export function driverProblem(line: string): string | false {
  const problem = commandProblem(line);
  if (problem) return problem;
  const unknown = placeholders(line).find((name) => !PLACEHOLDERS.some((known) => known === name));
  const known = PLACEHOLDERS.map((name) => `{${name}}`).join(" ");
  if (unknown !== undefined) return `unknown placeholder {${unknown}}; known are ${known}`;
  return (
    !asksFor(line, "socket") &&
    "no {socket} in it: the driver is to serve on that path, which differs from run to run"
  );
}

/** The words of a driver's command line with its placeholders filled in, without a shell. */
export const fillIn = (command: string[], context: DriverContext): string[] =>
  command.map((word) => word.replace(PLACEHOLDER, (_, name: keyof DriverContext) => String(context[name])));

/** A command line whose program, if it is named by a relative path, is named from the root: another folder may start it. */
export function fromHere(line: string): string {
  const [program = "", ...rest] = words(line);
  if (!program.includes("/") || program.startsWith("/") || program.includes("{")) return line;
  // Braces need no quotes, and are read more easily without.
  const quoted = (word: string) => (/^[\w@%+=:,./{}-]+$/.test(word) ? word : shellQuoted(word));
  return [resolve(program), ...rest].map(quoted).join(" ");
}

/**
 * Why the program of a command line, a path or a name to be found on PATH, cannot be run; false if it can, or if it is
 * named by a placeholder, whose value is only known later.
 */
export function programProblem(program: string): string | false {
  if (program.includes("{")) return false;
  const missing = `no such program: ${program}`;
  // No system has a path that long, and Bun throws at one.
  if (program.length > 4_096) return `no such program: ${program.slice(0, 40)}…`;
  if (!program.includes("/")) return !Bun.which(program) && missing;
  try {
    const found = statSync(program, { throwIfNoEntry: false });
    if (!found) return missing;
    if (!found.isFile())
      return `a ${found.isDirectory() ? "folder" : "special file"}, not a program: ${program}`;
    accessSync(program, constants.X_OK);
    return false;
  } catch {
    return `not executable (chmod +x): ${program}`;
  }
}
