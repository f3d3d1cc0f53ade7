/* pusher-js in a worker. The page sends the key, the options and the channels. The worker posts states and events to it. */
importScripts('/pusher.worker.js');

onmessage = ({ data: { key, options, channels } }) => {
  const pusher = new Pusher(key, options);
  pusher.connection.bind('state_change', ({ current }) => postMessage({ state: current }));
  for (const name of channels) {
    pusher.subscribe(name).bind_global((event, data) => postMessage({ channel: name, event, data }));
  }
};
