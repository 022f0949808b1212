// SPDX-License-Identifier: Apache-2.0

/**
 * How the gateway ends when it must not go on: a framed message and exit code 1 for what goes wrong at run time, a usage
 * message and exit code 2 for a command line that makes no sense. The texts and frames are those of the real program,
 * so that whoever reads its output reads this one's too.
 */
import { constants } from "node:os";

/** Ends the program with exit code 1. The kind is the prefix that the real program puts before its message. */
export class Failure extends Error {
  static config = (message: string) => new Failure(`configuration error: ${message}`);
  static execution = (message: string) => new Failure(`execution error: ${message}`);
  static transport = (message: string) => new Failure(`transport error: ${message}`);
  static tls = (message: string) => new Failure(`TLS error: ${message}`);

  /** What the real program can do and this one cannot: said plainly, never pretended. */
  static notInThisFake = (what: string) =>
    new Failure(`this fake gateway has no ${what}; use the real openshell-gateway`);
}

/** Ends the program with exit code 2. */
export class UsageError extends Error {
  constructor(message: string, hint = "") {
    super(`error: ${message}\n${hint}\nFor more information, try '--help'.`);
  }
}

/** A message as the real program frames it: 80 columns, one bullet, a bar before every further line. */
export function frame(message: string): string {
  const lines = message.split("\n").flatMap((line) => wrap(line, 76));
  return `Error:   × ${lines.join("\n  │ ")}\n`;
}

/** Breaks at spaces, after a slash, and after a hyphen inside a word, as the real program's frame does. */
function wrap(line: string, width: number): string[] {
  const lines: string[] = [];
  let current = "";
  for (const piece of line.match(PIECES) ?? []) {
    if (current !== "" && (current + piece).trimEnd().length > width) {
      lines.push(current.trimEnd());
      current = "";
    }
    current += piece;
    while (current.trimEnd().length > width) {
      lines.push(current.slice(0, width));
      current = current.slice(width);
    }
  }
  return [...lines, current.trimEnd()];
}

const PIECES = /.+?(?: +|(?<=[A-Za-z0-9]-)(?=[A-Za-z0-9])|(?<=\/)(?![\d/ ])|$)/g;

/** An operating system error in the words that the real program uses, such as "Connection refused (os error 111)". */
export function osError(error: unknown): string {
  const { code = "", message } = error as NodeJS.ErrnoException;
  // grpc-js reports a failed bind only in the text of its message.
  const name = code in OS_ERRORS ? code : (/\bE[A-Z]{3,}\b/.exec(message)?.[0] ?? "");
  const text = OS_ERRORS[name];
  return text ? `${text} (os error ${constants.errno[name as keyof typeof constants.errno]})` : message;
}

const OS_ERRORS: Record<string, string> = {
  EACCES: "Permission denied",
  EADDRINUSE: "Address already in use",
  EADDRNOTAVAIL: "Cannot assign requested address",
  ECONNREFUSED: "Connection refused",
  EISDIR: "Is a directory",
  ENOENT: "No such file or directory",
  ENOTDIR: "Not a directory",
};

/** A status within a message, whole, in the words of tonic, the real program's gRPC library. */
export const wholeStatus = ({ code, details }: { code: number; details: string }): string =>
  `code: '${CODE_WORDS[code]}', message: ${JSON.stringify(details)}`;

const CODE_WORDS = [
  "The operation completed successfully",
  "The operation was cancelled",
  "Unknown error",
  "Client specified an invalid argument",
  "Deadline expired before operation could complete",
  "Some requested entity was not found",
  "Some entity that we attempted to create already exists",
  "The caller does not have permission to execute the specified operation",
  "Some resource has been exhausted",
  "The system is not in a state required for the operation's execution",
  "The operation was aborted",
  "Operation was attempted past the valid range",
  "Operation is not implemented or not supported",
  "Internal error",
  "The service is currently unavailable",
  "Unrecoverable data loss or corruption",
  "The request does not have valid authentication credentials",
];
