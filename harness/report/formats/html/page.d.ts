// SPDX-License-Identifier: Apache-2.0

/** page.js imported `with { type: "text" }`: it runs in a browser. */
declare const text: string;
export default text;
