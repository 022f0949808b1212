// SPDX-License-Identifier: Apache-2.0

/** Text as every part of the harness writes it. */
import { relative } from "node:path";

/** A path as it is shown: from here, if it is below. */
export const shownPath = (path: string): string =>
  path.startsWith(`${process.cwd()}/`) ? relative(process.cwd(), path) : path;

export const indent = (text: string, margin: string): string => text.replace(/^/gm, margin);

/** Whether to write in colours: to a terminal, or to a process that hands them on to one, unless asked not to. */
export const inColour = ({ isTTY }: { isTTY?: boolean }): boolean =>
  (isTTY === true || process.env.FORCE_COLOR === "1") &&
  !process.env.NO_COLOR &&
  !process.env.CI &&
  process.env.TERM !== "dumb";

/** The columns of the terminal to which a stream leads, by its own word or by that of the process that hands it on. */
export const widthOf = ({ columns }: { columns?: number }): number | undefined =>
  columns || Number(process.env.OPENSHELL_E2E_COLUMNS) || undefined;

/** A duration as a person says it: "12 ms", "1.3 s", "4 min 05 s". */
export function took(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  return `${Math.floor(seconds / 60)} min ${String(seconds % 60).padStart(2, "0")} s`;
}

/** "+1.20 s" since a scenario's start; a call may have begun before it. */
export const offset = (ms: number): string => `${ms < 0 ? "−" : "+"}${(Math.abs(ms) / 1000).toFixed(2)} s`;

/** An argument as a shell takes it, so that a command line can be copied. */
export const shellQuoted = (argument: string): string =>
  /^[\w@%+=:,./-]+$/.test(argument) ? argument : `'${argument.replaceAll("'", String.raw`'\''`)}'`;

/** "3 scenarios", "1 scenario". */
export const plural = (count: number, one: string, many = `${one}s`): string =>
  `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

/** The first line, cut to so many characters. */
export function clipped(text: string, length = 200): string {
  const line = text.trim().split("\n", 1)[0] ?? "";
  return line.length > length ? `${line.slice(0, length - 1)}…` : line;
}
