// SPDX-License-Identifier: Apache-2.0

/**
 * Foreign text, made fit for people: what drivers, gateways and engines say. Everything that leaves the harness goes
 * through `readable`, whether it is thrown, printed, recorded or copied.
 */
import { type Secrets, withoutSecrets } from "./secrets.ts";

/** A longer text is cut in its middle, to so many characters. */
export const LONGEST_TEXT = 100_000;
/** More of a text is not even looked at. A secret that this cut goes through is cut away by the one after it. */
const LONGEST_LOOK = 1_000_000;

/**
 * A text as people and machines may see it: of bounded length, without secrets and colours, and with every character that
 * would do something to a terminal, a CI log or its reader spelled out. It takes time in proportion to the text's length.
 * @param more secrets that are not known to the whole process
 */
export const readable = (text: string, more?: Secrets): string =>
  visible(cutTo(LONGEST_TEXT, cleaned(cutTo(LONGEST_LOOK, text), more)));

/** The same of any length, for a text that is bounded already. */
export const readableWhole = (text: string): string => visible(cleaned(text));

const cleaned = (text: string, more?: Secrets): string => withoutSecrets(withoutColours(text), more);

/** The beginning and the end of a long text, with a word on what is missing between them. */
function cutTo(length: number, text: string): string {
  if (text.length <= length) return text;
  const room = length - 100;
  const head = text.slice(0, Math.ceil(room * 0.6));
  const tail = text.slice(-Math.floor(room * 0.4));
  return `${head}\n… (${(text.length - room).toLocaleString("en")} characters are left out) …\n${tail}`;
}

// oxlint-disable-next-line no-control-regex -- it is what is looked for
const COLOUR = /\u001b\[[\d;:]{0,32}m/g;

const withoutColours = (text: string): string => (text.includes("\u001b") ? text.replace(COLOUR, "") : text);

/**
 * Characters that do something or hide something: control characters but for line breaks and tabs, those that turn the
 * direction of writing, invisible ones, halves of characters, and what XML forbids. Joiners stay: scripts and emoji need them.
 */
const ACTIVE =
  // oxlint-disable-next-line no-control-regex -- they are what is looked for
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff\p{Cs}\u{e0000}-\u{e007f}]/gu;

/** A text with each of those as an escape, such as `\x1b`. */
export const spelledOut = (text: string): string =>
  text.replaceAll("\r\n", "\n").replace(ACTIVE, (character) => {
    const code = character.codePointAt(0)!;
    const hex = code.toString(16);
    if (character === "\r") return String.raw`\r`;
    if (code < 0x100) return String.raw`\x${hex.padStart(2, "0")}`;
    return code < 0x10000 ? String.raw`\u${hex.padStart(4, "0")}` : String.raw`\u{${hex}}`;
  });

/**
 * A text with nothing that a CI runner takes for a command. Whoever puts pieces of a text where lines begin has to ask again.
 * GitHub's reads `::NAME …::` where a line begins, after
 * any blanks, and the older `##[NAME]` anywhere in a line (actions/runner, src/Runner.Common/ActionCommand.cs); Azure
 * Pipelines and TeamCity have `##vso[` and `##teamcity[`.
 */
export const withoutCommands = (text: string): string =>
  text.replace(/^([^\S\n]*):(?=:)/gm, String.raw`$1\x3a`).replace(/#(?=#[a-z]{0,20}\[)/gi, String.raw`\x23`);

const visible = (text: string): string => withoutCommands(spelledOut(text));

/** Prints a text of which some is foreign. */
export const say = (text: string): void => console.log(readable(text));

/** A log line without its tracing spans, which are longer than what it says. */
export const withoutSpans = (line: string): string =>
  line.replace(/(?<![\w.])[\w.]{1,100}\{[^}]{0,400}\}:?\s{0,8}/g, "");

/**
 * Makes an error fit to be printed, in place: whoever prints it, as bun does with what a test throws, shows its message, its
 * stack, its causes, and every field that it has, such as the `details` of a call. Where it was thrown stays with it.
 */
export function readableError(thrown: unknown): Error {
  const isError = thrown instanceof Error;
  const error =
    isError && !Object.isFrozen(thrown) ? thrown : new Error(isError ? thrown.message : String(thrown));
  const set = (name: string, value: unknown) => {
    const property = { value, writable: true, configurable: true, enumerable: false };
    // A DOMException's message has no setter, and the fields of an error of the system cannot be defined again.
    if (!Reflect.defineProperty(error, name, property)) Reflect.set(error, name, value);
  };
  const { message, stack } = error;
  set("message", readable(message));
  // It begins with the message.
  if (stack !== undefined) set("stack", readable(stack));
  for (const [name, value] of Object.entries(error)) {
    if (typeof value === "string") set(name, readable(value));
    else if (typeof value === "object" && value !== null) Reflect.deleteProperty(error, name);
  }
  if (error.cause !== undefined) set("cause", readableError(error.cause));
  if (error instanceof AggregateError) set("errors", error.errors.map(readableError));
  return error;
}
