/** Starts Chromium: the browser that CHROMIUM names, or the first on the PATH. */
import { accessSync, constants } from 'node:fs';
import { delimiter, join } from 'node:path';
import { chromium } from 'playwright-core';
import { closeWith } from './resources.mjs';

const NAMES = ['chromium', 'chromium-browser', 'google-chrome-stable', 'google-chrome'];
const ARGUMENTS = [
  '--headless',
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];

export async function launchChromium(owner) {
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? find(), args: ARGUMENTS });
  closeWith(owner, 'Chromium', () => browser.close());
  return browser;
}

function find() {
  const directories = process.env.PATH.split(delimiter);
  const candidates = NAMES.flatMap((name) => directories.map((directory) => join(directory, name)));
  const found = candidates.find(isExecutable);
  if (!found) throw new Error(`none of ${NAMES.join(', ')} is on the PATH: set CHROMIUM to a browser`);
  return found;
}

function isExecutable(path) {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}
