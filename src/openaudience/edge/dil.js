/* Collection library: finds the client's user ID on a page and sends it with signals. See the site guide. */
(function (win) {
  "use strict";
  if (win.DIL && win.DIL.openaudience) { return; }

  var EDGE = "__EDGE_DOMAIN__";
  var STEP = 250, PATIENCE = 10000, MAX_IDS = 10, MAX_PER_SOURCE = 3, MAX_BODY = 32768, MAX_URL = 8192;
  var KEPT = 4, MAX_KEPT = 16000; // browsers refuse more than 64 kB at a time of calls that outlive the page
  var RESERVED = ["sids", "pdata", "logdata", "callback", "postCallbackFn", "useImageRequest"];
  var UUID = /^\d{38}$/, NUMBER = /^[1-9]\d*$/, FORM = "application/x-www-form-urlencoded";
  var PHONE = /(^|[^0-9a-z])\+([ .\-()\[\]{}]*[0-9]){8,15}(?![0-9])/i;
  var SYNCS_OFF = "ID syncs are switched off", TOO_LONG = "too long, not sent";
  var BLOCKED = "no connection, or blocked", NOT_NOW = "the browser takes no more while the page goes away";
  var doc = win.document, instances = {}, synced = {}, pictures = [], gone = false;
  var stopped = {}, refused = {}, accepted = {}; // by partner; the last two hold consent texts
  var devices = {}, asking = {}; // by edge domain: the device, and whether the call that makes one is under way
  var loaded = doc.readyState === "complete", loadedAt = Date.now(), reporting = false, counter = 0, kept = 0;
  var consent = { asked: false, known: false, applies: false, text: "" };

  // ---- small things; loops of our own, for libraries put others into Array.prototype ----

  function isObject(value) { return !!value && typeof value === "object" && !Array.isArray(value); }
  function isText(value) { return typeof value === "string" && value !== ""; }
  function list(value) { return Array.isArray(value) ? value : []; }
  function each(object, action) {
    for (var key in object) { if ({}.hasOwnProperty.call(object, key)) { action(key, object[key]); } }
  }
  function loop(items, action) { for (var i = 0; i < items.length; i++) { action(items[i], i); } }
  function map(items, change) {
    var changed = [];
    loop(items, function (item, i) { changed.push(change(item, i)); });
    return changed;
  }
  function filter(items, test) {
    var found = [];
    loop(items, function (item) { if (test(item)) { found.push(item); } });
    return found;
  }
  function copy(from, to) { each(from, function (key, value) { to[key] = value; }); return to; }
  function why(error) { return String(error && error.message || error); }
  function attempt(action, otherwise) { try { return action(); } catch (e) { return otherwise; } }
  function later(action, ms) { win.setTimeout(function () { attempt(action); }, ms || 0); }
  function all(method, how) { each(instances, function (name, instance) { how(instance[method]); }); }
  function nothing() { return; }
  function same(value) { return value; }
  function decode(value) { return attempt(function () { return decodeURIComponent(value); }, value); }
  function decodeForm(value) { return decode(value.replace(/\+/g, " ")); }

  function encode(value) {
    try { return encodeURIComponent(value); } catch (e) { // half of a surrogate pair
      return encodeURIComponent(String(value).replace(/[\ud800-\udfff]/g, "\ufffd"));
    }
  }

  function keep(items, item) {
    items.push(item);
    if (items.length > 500) { items.shift(); }
  }

  /** FNV-1a: what was synced is remembered without the ID itself. */
  function hash(value) {
    var h = 2166136261, i;
    for (i = 0; i < value.length; i++) {
      h ^= value.charCodeAt(i);
      h += (h << 1) + (h << 4) + (h << 7) + (h << 8) + (h << 24);
    }
    return (h >>> 0).toString(16);
  }

  function pairsOf(text, separator, clean) {
    return map(text.split(separator), function (pair) {
      var at = pair.indexOf("=");
      return at < 0 ? [clean(pair), ""] : [clean(pair.slice(0, at)), clean(pair.slice(at + 1))];
    });
  }

  function pick(pairs, name) {
    var found = filter(pairs, function (pair) { return pair[0] === name; })[0];
    return found ? found[1] : null;
  }

  // ---- personal data: never sent ----

  function isAddress(value) {
    var sides = value.split("@");
    return sides.length === 2 && sides[0] !== "" && sides[1].slice(1, -1).indexOf(".") >= 0 && !/\s/.test(value);
  }

  /** The rule of the edge, also for what is part of a list, a query or a sentence, or hides behind escapes. */
  function personal(value) {
    var pieces, plain, times;
    for (times = 0; times < 10; times++) {
      pieces = value.split(/[\s\x01,;|&=?<>"'\/:+\\]+/).concat(value.trim());
      if (PHONE.test(value) || filter(pieces, isAddress).length) { return true; }
      plain = value.replace(/%([0-7][0-9a-f])/gi, function (all, hex) { return String.fromCharCode("0x" + hex); });
      if (plain === value) { return false; }
      value = plain;
    }
    return true; // nothing else is escaped so often
  }

  function mask(value) {
    if (personal(value)) { return value.charAt(0) === "+" ? "+***" : value.charAt(0) + "***@***"; }
    return value.slice(0, value.length > 4 ? 4 : 1) + "***";
  }

  // ---- cookies and storage, which the browser may forbid ----

  function readCookie(name) {
    var pairs = attempt(function () { return pairsOf(doc.cookie, /;\s*/, same); }, []), value = pick(pairs, name);
    return value === null ? pick(pairs, encode(name)) : value;
  }

  function writeCookie(name, value, days, path, domain, secure) {
    attempt(function () {
      if (/[\s;=,]/.test(name)) { return; }
      doc.cookie = name + "=" + value + ";expires=" + new Date(Date.now() + days * 864e5).toUTCString() +
        ";path=" + path + ";domain=" + domain + (secure ? ";secure" : "");
    });
  }

  function isFresh(key) {
    return Date.now() < (synced[key] || attempt(function () { return win.localStorage.getItem("dil_sync_" + key); }));
  }

  function remember(key, until) {
    synced[key] = until;
    attempt(function () { win.localStorage.setItem("dil_sync_" + key, String(until)); });
  }

  // ---- where IDs are ----

  function walk(root, path) {
    loop(path.replace(/\[["']?([^\]"']*)["']?\]/g, ".$1").split("."), function (name) {
      root = root === null || root === undefined ? undefined : root[name];
    });
    return root;
  }

  function metaTag(name) {
    var tag = filter(doc.getElementsByTagName("meta"), function (one) {
      return one.getAttribute("name") === name;
    })[0];
    return tag ? tag.getAttribute("content") : null;
  }

  /** By type of place: the field that it cannot do without, and how the value is read. */
  var PLACES = {
    cookie: ["name", function (from) {
      var raw = readCookie(from.name), inner;
      if (raw === null || !from.param) { return raw === null ? null : decode(raw); }
      inner = pick(pairsOf(raw, "&", decode), from.param);
      return inner === null ? pick(pairsOf(decode(raw), "&", same), from.param) : inner;
    }],
    variable: ["path", function (from) { return walk(win, from.path); }],
    dataLayer: ["key", function (from) {
      var last;
      loop(walk(win, from.name || "dataLayer") || [], function (one) {
        var value = isObject(one) ? one[from.key] : undefined;
        value = value === undefined ? walk(one, from.key) : value;
        last = value === undefined ? last : value;
      });
      return last;
    }],
    element: ["selector", function (from) {
      var found = doc.querySelector(from.selector), text;
      text = found && (from.attribute ? found.getAttribute(from.attribute) : found.textContent);
      return text && text.trim();
    }],
    meta: ["name", function (from) { return metaTag(from.name); }],
    query: ["name", function (from) {
      return pick(pairsOf(win.location.search.slice(1), "&", decodeForm), from.name);
    }],
    storage: ["key", function (from) {
      return (from.area === "session" ? win.sessionStorage : win.localStorage).getItem(from.key);
    }],
    "function": ["fn", function (from) { return from.fn(); }]
  };

  /** What a source holds now: {source, value, reason}; the reason says why the value cannot be sent. */
  function find(source) {
    var value, reason = "", type;
    try { value = PLACES[source.from.type][1](source.from); } catch (e) { reason = "could not be read: " + why(e); }
    type = typeof value;
    if (reason) { value = ""; }
    else if (value === undefined || value === null) { reason = "nothing found"; }
    else if (type !== "string" && type !== "number") { reason = "neither text nor a number, but " + type; }
    else if (type === "number" && !(Math.abs(value) <= 9007199254740991)) {
      reason = "a number that has lost digits: keep the ID as text";
    }
    else if (!/\S/.test(value)) { reason = "empty"; }
    else if (/[\x00-\x1f\x7f]/.test(value)) { reason = "holds a control character"; }
    else if (personal(String(value))) { reason = "looks like personal data (e-mail or phone): send a hash"; }
    return { source: source, reason: reason, value: type === "string" || type === "number" ? String(value) : "" };
  }

  function stateOf(source) {
    var state = typeof source.authState === "function" ? attempt(source.authState) : source.authState;
    return /^[012]$/.test(state) ? String(state) : "";
  }

  function namespaceOf(source) { return String(source.dpid || source.integrationCode); }

  function declared(entry) {
    return (entry.source.dpid ? "d_cid=" : "d_cid_ic=") + encode(namespaceOf(entry.source)) + "%01" +
      encode(entry.value) + (entry.state ? "%01" + entry.state : "");
  }

  function declaredSource(id) {
    if (!isObject(id) || !NUMBER.test(id.dpid)) { throw "declaredId needs a dpid (a number) and a dpuuid (text)"; }
    return { dpid: id.dpid, place: "declaredId", from: { type: "function", fn: function () { return id.dpuuid; } } };
  }

  function checkedSource(given, number) {
    var what = "idSources[" + number + "]", from = given && given.from, field;
    if (!isObject(from) || !PLACES.hasOwnProperty(from.type)) {
      throw what + ".from.type must be one of cookie, variable, dataLayer, element, meta, query, storage, function";
    }
    field = PLACES[from.type][0];
    if (field === "fn" ? typeof from.fn !== "function" : !isText(from[field])) {
      throw what + ".from." + field + " is missing";
    }
    if (given.dpid ? !NUMBER.test(given.dpid) : !isText(given.integrationCode)) {
      throw what + " needs a dpid (a number) or an integrationCode (text)";
    }
    return copy(given, { place: from.type + " " + (field === "fn" ? "" : from[field]) });
  }

  // ---- consent (IAB TCF 2): nothing leaves before the visitor has decided ----

  /** The page's consent manager, or, in an iframe, the way to that of a page around it. */
  function consentManager() {
    var frame = win, found = null, asked = {};
    if (typeof win.__tcfapi === "function") { return win.__tcfapi; }
    while (frame !== win.top && !found) {
      frame = frame.parent;
      found = attempt(function () { return frame.frames.__tcfapiLocator; }) ? frame : null;
    }
    if (!found) { return null; }
    win.addEventListener("message", function (event) {
      var data = event.source === found && event.data, answer;
      answer = attempt(function () { return (isText(data) ? JSON.parse(data) : data).__tcfapiReturn; });
      if (answer && asked[answer.callId]) { asked[answer.callId](answer.returnValue, answer.success); }
    }, false);
    return function (command, version, callback) {
      asked["dil" + ++counter] = callback;
      found.postMessage({ __tcfapiCall: { command: command, version: version, callId: "dil" + counter } }, "*");
    };
  }

  /** Whether there is a consent manager that has not told the visitor's decision yet. */
  function undecided() {
    var ask = consent.asked ? null : consentManager();
    if (ask) {
      consent.asked = true;
      ask("addEventListener", 2, function (data, success) {
        if (success && data && (data.gdprApplies === false || data.eventStatus === "tcloaded" ||
            data.eventStatus === "useractioncomplete")) {
          consent = { asked: true, known: true, applies: data.gdprApplies !== false, text: data.tcString || "" };
          all("pump", later);
        }
      });
    }
    return consent.asked && !consent.known;
  }

  // ---- one instance ----

  function DIL() { return this; }

  function checkedConfig(given) {
    if (!isObject(given)) { throw "the configuration is missing"; }
    var config = copy(given, {}), sources = given.idSources || [];
    if (!isText(given.partner) || !/^[a-z0-9]([\w.\-]*[a-z0-9])?$/i.test(given.partner)) {
      throw "partner is missing, or no host name";
    }
    config.containerNSID = given.containerNSID === undefined ? 0 : given.containerNSID;
    if (!/^\d+$/.test(config.containerNSID)) { throw "containerNSID must be a whole number"; }
    config.edgeDomain = given.edgeDomain || EDGE;
    if (!/^[a-z0-9][a-z0-9.\-]*(:\d+)?$/i.test(config.edgeDomain)) { throw "edgeDomain must be a host name"; }
    if (!Array.isArray(sources)) { throw "idSources must be an array"; }
    config.idSources = (given.declaredId ? [declaredSource(given.declaredId)] : []).concat(map(sources, checkedSource));
    config.waitMs = given.waitMs >= 0 ? Number(given.waitMs) : 3000;
    config.uuidCookie = copy(given.uuidCookie, { name: "aam_did", days: 100, path: "/", domain: "." + doc.domain });
    return config;
  }

  function build(instance, config) {
    var api = {}, events = [], queue = [], fired = [], variables = {}, carried = {}, busy = false;
    var calls = 0, round = 0, held = "", pending = blank();

    function blank() { return { own: null, found: [], sids: [], logs: [], pairs: [], image: false, after: [] }; }
    function isOn(name) { return config[name] === true; }
    function scheme(secure) { return secure || win.location.protocol !== "http:" ? "https" : "http"; }
    function host(name) {
      return scheme(config.secureDataCollection !== false) + "://" + name + "." + config.edgeDomain;
    }

    function log(text, problem) {
      keep(events, text);
      if (problem && reporting) { win.console.warn("DIL: " + text); }
    }

    function guarded(what, action) {
      try { return action(); } catch (e) { log(what + " failed: " + why(e), true); }
    }

    function deviceId() {
      var stored = readCookie(config.uuidCookie.name);
      return isOn("disableDeclaredUUIDCookie") ? "" : UUID.test(stored) ? stored : devices[config.edgeDomain] || "";
    }

    function knownDevice() { return deviceId() || devices[config.edgeDomain] || ""; }

    /** Why nothing may be sent, or "". */
    function silence() {
      var flag = readCookie("dil_optout"), out = config.optOut;
      if (typeof out === "function") { out = attempt(out, true); }
      return stopped[config.partner] ? "opted out (the edge answered 171)" :
        flag && flag !== "0" && flag !== "false" ? "opted out (cookie dil_optout)" :
        out ? "opted out (optOut)" :
        needsConsent() && refused[config.partner] === consent.text ? "consent refused (the edge answered 315)" : "";
    }

    function needsConsent() { return config.tcf !== false && consent.applies; }

    function consentPairs() {
      return config.tcf === false || !consent.known ? [] :
        consent.applies ? ["gdpr=1", "gdpr_consent=" + encode(consent.text)] : ["gdpr=0"];
    }

    // -- the queue: one call after the other --

    function isHeld() {
      var reason = isOn("delayAllUntilWindowLoad") && !loaded ? "Calls wait for window load" :
        config.tcf !== false && undecided() ? "Calls wait for the consent manager" : "";
      if (reason && reason !== held) { log(reason); }
      held = reason;
      return !!reason;
    }

    function isReady(job) {
      var reason = job.waits ? job.waits() : "";
      if (reason && reason !== job.told) { log(job.name + " waits for " + reason); }
      job.told = reason;
      return !reason;
    }

    function pump() {
      var job, reason, open = true, edge = config.edgeDomain, asks;
      // one call of all instances makes the device, the others wait for it
      if (busy || !queue.length || isHeld() || asking[edge] && !knownDevice()) { return; }
      job = filter(queue, isReady)[0];
      if (!job) { return; }
      queue.splice(queue.indexOf(job), 1);
      reason = silence();
      if (reason) {
        log("Not sent, " + reason + ": " + job.name);
        return pump();
      }
      function done(problem) {
        if (!open) { return; }
        if (problem) { log(job.name + ": " + problem, true); }
        open = busy = false;
        if (asks) { asking[edge] = false; }
        all("pump", later);
      }
      busy = true;
      asks = !job.waits && !knownDevice();
      if (asks) { asking[edge] = true; }
      keep(fired, job.name);
      later(function () { done("no answer in time, going on"); }, PATIENCE);
      try { job.run(done); } catch (e) { done(why(e)); }
    }

    /** A job: {name, run, request of an event, what is synced, waits: why it cannot leave yet though others can}. */
    function enqueue(job) {
      queue.push(job);
      attempt(gone ? flush : pump); // at once: the page may be about to go away
    }

    /** The page goes away: events that still wait for their turn leave now. What the browser does not take stays. */
    function flush() {
      if (!win.navigator.sendBeacon || isHeld() || silence()) { return; }
      queue = filter(queue, function (job) {
        var body = job.request && compose(job.request), problem = "";
        if (!body) { return true; }
        if (body.length > MAX_BODY) { problem = TOO_LONG; }
        else if (!win.navigator.sendBeacon(eventUrl(), new win.Blob([body], { type: FORM }))) { problem = NOT_NOW; }
        if (problem) { log(job.name + ": " + problem, true); } else { carry(job.request); }
        return problem === NOT_NOW;
      });
    }

    // -- transports --

    function picture(url, done) {
      var image = new win.Image();
      function end(problem) {
        pictures.splice(pictures.indexOf(image), 1);
        done(problem);
      }
      pictures.push(image); // else it may be collected before it has come
      image.onload = function () { end(""); };
      image.onerror = function () { end("no image came (blocked, or something else)"); };
      image.src = url;
    }

    function post(url, body, request, done) {
      var xhr, alive = kept < KEPT && body.length <= MAX_KEPT;
      function end(status, answer) {
        if (answer !== undefined) { receive(answer, request); }
        done(answer !== undefined ? "" : status ? "the answer (status " + status + ") is not JSON" : BLOCKED);
      }
      if (win.fetch) {
        win.fetch(url, {
          method: "POST", body: body, headers: { "Content-Type": FORM }, credentials: "include", keepalive: alive
        }).then(function (response) {
          kept -= alive;
          response.json().then(function (answer) { end(1, answer); }, function () { end(response.status); });
        }, function () {
          kept -= alive;
          end(0);
        });
        kept += alive;
        return;
      }
      xhr = new win.XMLHttpRequest();
      xhr.open("POST", url, true);
      xhr.withCredentials = true;
      xhr.setRequestHeader("Content-Type", FORM);
      xhr.onreadystatechange = function () {
        if (xhr.readyState === 4) { end(xhr.status, attempt(function () { return JSON.parse(xhr.responseText); })); }
      };
      xhr.send(body);
    }

    function script(url, request, done) {
      var name = "dil_callback_" + ++counter, tag = doc.createElement("script");
      function end(problem) {
        if (isOn("removeFinishedScriptsAndCallbacks")) {
          win[name] = undefined;
          tag.parentNode.removeChild(tag);
        }
        done(problem);
      }
      win[name] = function (answer) {
        receive(answer, request);
        end("");
      };
      tag.onerror = function () { end(BLOCKED); };
      tag.src = url + "&d_cb=" + name;
      (doc.head || doc.documentElement).appendChild(tag);
    }

    // -- IDs --

    function note(source, reason) {
      if (reason && source.told !== reason) { log("ID of " + source.place + " not sent: " + reason); }
      source.told = reason;
    }

    /** The IDs of a call in their order, each with the reason if it is not sent. ``found``: those found at submit. */
    function identify(own, found) {
      var counts = {}, total = 0, sources = config.idSources;
      if (own) {
        sources = [own].concat(filter(sources, function (source) { return source.place !== own.place; }));
      }
      return map(sources, function (source) {
        var entry = filter(found, function (one) { return one.source === source && !one.reason; })[0], key;
        if (!entry) {
          entry = find(source);
          entry.state = stateOf(source);
        }
        if (entry.reason || source.via === "ibs") { return entry; }
        key = "n" + namespaceOf(source);
        counts[key] = (counts[key] || 0) + 1;
        entry.excess = counts[key] > MAX_PER_SOURCE ? "more than " + MAX_PER_SOURCE + " IDs of one data source" :
          ++total > MAX_IDS ? "more than " + MAX_IDS + " IDs in one call" : "";
        return entry;
      });
    }

    function carriedAs(entry) { return namespaceOf(entry.source) + "\x01" + entry.value; }
    function isSent(entry) { return carried[carriedAs(entry)] === true; }
    function carry(request) { loop(request.ids, function (id) { carried[id] = true; }); }

    /** With the consent: what an image call was refused for is not known, so another decision calls again. */
    function keyOf(what) { return hash([config.edgeDomain, what].concat(consentPairs()).join("\x01")); }

    /** An image call, unless the same was made less than so many minutes ago. ``waits``: for those of others. */
    function sync(what, minutes, name, url, waits) {
      enqueue({ name: name, what: what, waits: waits, run: function (done) {
        var key = keyOf(what), until = Date.now() + (minutes >= 1 ? minutes : 20160) * 6e4;
        if (isFresh(key)) {
          log(name + ": not again before its time");
          return done("");
        }
        if (waits) { remember(key, until); } // what others answer to their addresses says nothing
        picture(url(), function (problem) {
          if (!problem) { remember(key, until); }
          done(problem);
        });
      } });
    }

    function matchSync(entry) {
      var source = entry.source, pairs = source.dpid && !entry.state ?
        "dpid=" + encode(source.dpid) + "&dpuuid=" + encode(entry.value) : declared(entry);
      sync(carriedAs(entry), source.minutesToLive, "ID sync of " + source.place, function () {
        return host("dpm") + "/ibs:" + [pairs].concat(consentPairs()).join("&");
      });
    }

    /** The image call of an ID with ``via: "ibs"``, unless it was made or waits already. */
    function syncFound(entry) {
      var what = carriedAs(entry), reason = entry.reason || (isOn("disableIDSyncs") ? SYNCS_OFF : "");
      note(entry.source, reason);
      entry.source.tried = entry.value;
      if (reason || isFresh(keyOf(what)) || filter(queue, function (job) { return job.what === what; })[0]) { return; }
      matchSync(entry);
    }

    function syncUrl(dpid, url, minutes, kind) {
      url = url.replace(/^\/\//, scheme(false) + "://");
      if (!/^https?:\/\//i.test(url)) { throw "url must begin with https://, http:// or //"; }
      sync(kind + dpid, minutes, "ID sync with " + dpid, function () {
        return url.replace(/%TIMESTAMP%/g, Date.now()).replace(/%DID%/g, knownDevice())
          .replace(/%HTTP_PROTO%/g, scheme(false));
      }, function () {
        return /%DID%/.test(url) && !knownDevice() ? "the device ID" :
          needsConsent() && accepted[config.partner] !== consent.text ? "the edge to accept the consent" : "";
      });
    }

    /** Looks for missing IDs. One that is found after the page's call went out gets a call of its own. */
    function poll(mine, seen) {
      var over = loaded && Date.now() >= loadedAt + config.waitMs, missing = false, unsent = false;
      if (mine !== round || silence()) { return; }
      loop(identify(null, []), function (entry) {
        var source = entry.source, ibs = source.via === "ibs";
        if (!ibs && (source.done || isSent(entry))) { return; }
        if (entry.reason) {
          missing = true;
          if (over) { note(source, entry.reason); }
        } else if (!ibs) { unsent = true; }
        else if (source.tried !== entry.value) { syncFound(entry); }
      });
      if (unsent && calls && !busy && !filter(queue, function (job) { return job.request; })[0]) {
        if (seen || over) { submit(blank(), "Event for an ID found late"); }
        seen = true;
      }
      if (over ? unsent && calls : missing || unsent) { later(function () { poll(mine, seen); }, STEP); }
    }

    // -- event calls --

    function isFit(key, value) {
      var secret = personal(key) || personal(String(value));
      if (secret) { log("A value of " + mask(key) + " looks like personal data and is left out", true); }
      return !secret && /^(string|number|boolean)$/.test(typeof value);
    }

    function eachOf(values, action) {
      if (!isObject(values)) { throw "it takes an object"; }
      each(values, action);
    }

    function add(key, value) {
      var kept;
      if (RESERVED.indexOf(key) >= 0) { return; }
      kept = filter(Array.isArray(value) ? value : [value], function (one) { return isFit(key, one); });
      pending.pairs = filter(pending.pairs, function (pair) { return pair[0] !== key; });
      if (kept.length) { pending.pairs.push([key, kept]); }
    }

    function compose(request) {
      var parts = consentPairs(), device = deviceId(), pairs = request.pairs.slice();
      parts.push("d_nsid=" + config.containerNSID);
      if (device) { parts.push("d_uuid=" + device); }
      request.consent = consent.text;
      request.ids = [];
      loop(identify(request.own, request.found), function (entry) {
        var source = entry.source;
        if (source.via === "ibs") { return; }
        note(source, entry.reason || entry.excess);
        source.done = !entry.reason;
        if (!entry.reason && !entry.excess) {
          request.ids.push(carriedAs(entry));
          parts.push(declared(entry));
        }
      });
      if (request.sids.length) { parts.push("d_sid=" + request.sids.join(",")); }
      parts.push("d_ld=" + encode(["_ts=" + Date.now()].concat(request.logs).join("&")));
      if (!request.image) { parts.push("d_rtbd=json", "d_jsonv=1", "d_dst=1"); }
      each(config.mappings, function (source, target) {
        var values = pick(request.pairs, source);
        if (values && values.join("") && !pick(pairs, target)) { pairs.push([target, values]); }
      });
      loop(pairs, function (pair) {
        loop(pair[1], function (value) { parts.push(encode(pair[0]) + "=" + encode(value)); });
      });
      return parts.join("&");
    }

    function eventUrl() { return host(config.partner) + "/event?_ts=" + Date.now(); }

    function send(request, done) {
      var body = compose(request), url = eventUrl(), get = url + "&" + body;
      var cors = win.fetch || // with which the JSON of the page does not matter
        win.JSON && win.JSON.parse && win.XMLHttpRequest && "withCredentials" in new win.XMLHttpRequest();
      if (!request.image && !cors && isOn("useCORSOnly")) { return done("the browser cannot do CORS, not sent"); }
      if (cors && !request.image ? body.length > MAX_BODY : get.length > MAX_URL) { return done(TOO_LONG); }
      if (request.image) { picture(get, done); }
      else if (cors) { post(url, body, request, done); } else { script(get, request, done); }
    }

    function submit(request, name) {
      calls++;
      request.found = identify(request.own, []);
      enqueue({ name: name, request: request, run: function (done) {
        send(request, function (problem) {
          if (!problem) { carry(request); }
          done(problem);
        });
      } });
      loop(request.found, function (entry) { if (entry.source.via === "ibs") { syncFound(entry); } });
    }

    // -- answers --

    function receive(answer, request) {
      guarded("The handling of the answer", function () { take(answer, request); });
    }

    function take(answer, request) {
      if (!isObject(answer)) { throw "it is not an object"; }
      loop(list(answer.errors), function (error) {
        log("The edge answered error " + error.code + ": " + error.msg, true);
        if (error.code === 315) { refused[config.partner] = request.consent; }
        if (error.code === 171) {
          stopped[config.partner] = true;
          log("Opted out: nothing more is sent from this page");
        }
      });
      if (UUID.test(answer.uuid) && !silence()) { // the visitor may have objected meanwhile
        devices[config.edgeDomain] = answer.uuid;
        accepted[config.partner] = request.consent;
      }
      guarded("The function given to result", function () { (request.result || publish)(answer); });
      loop(request.after, function (action) {
        guarded("The function given to afterResult", function () { action(answer); });
      });
    }

    /** What is done with an answer, unless the page does it. */
    function publish(answer) {
      var cookie = config.uuidCookie;
      if (silence()) { return; }
      if (UUID.test(answer.uuid) && !isOn("disableDeclaredUUIDCookie")) {
        writeCookie(cookie.name, answer.uuid, cookie.days, cookie.path, cookie.domain, cookie.secure === true);
      }
      loop(list(answer.stuff), function (one) {
        variables["v" + one.cn] = one.cv;
        if (one.type !== "var") {
          writeCookie(one.cn, encode(one.cv), one.ttl === undefined ? 180 : one.ttl, "/",
            one.dmn || "." + win.location.hostname.replace(/^www\./, ""), false);
        }
      });
      if (!isOn("disableDestinationPublishingIframe")) { loop(list(answer.dests), fireDestination); }
      if (!isOn("disableIDSyncs")) {
        loop(list(answer.ibs), function (provider) {
          loop(list(provider.url), function (url, i) { syncUrl(provider.id, url, provider.ttl, "ibs" + i); });
        });
      }
    }

    function fireDestination(one) {
      var url = scheme(false) === "http" ? one.c || one.e : one.e || one.c, frame;
      if (!/^(https?:)?\/\//i.test(url)) { return; }
      if (one.y !== "iframe") { return picture(url, nothing); }
      frame = doc.createElement("iframe");
      frame.style.display = "none";
      frame.src = url;
      (doc.body || doc.documentElement).appendChild(frame);
    }

    // -- what pages call: whatever goes wrong is said in the event log --

    function queued(given, act) {
      try {
        if (!given || !NUMBER.test(given.dpid)) { throw "dpid must be a number"; }
        if (given.minutesToLive !== undefined && !NUMBER.test(given.minutesToLive)) {
          throw "minutesToLive must be a whole number of minutes";
        }
        if (isOn("disableIDSyncs") || silence()) { throw "not queued: " + (silence() || SYNCS_OFF); }
        act();
        return "Successfully queued";
      } catch (e) { return "Error: " + why(e); }
    }

    each({
      signals: function (values, prefix) {
        eachOf(values, function (key, value) { add((prefix || "") + key, value); });
      },
      customQueryParams: function (values) { eachOf(values, add); },
      traits: function (sids) {
        if (!Array.isArray(sids)) { throw "it takes an array"; }
        pending.sids = pending.sids.concat(filter(sids, function (sid) { return NUMBER.test(sid); }));
      },
      logs: function (values) {
        eachOf(values, function (key, value) {
          if (isFit(key, value)) { pending.logs.push(encode(key) + "=" + encode(value)); }
        });
      },
      declaredId: function (id) { pending.own = declaredSource(id); },
      result: function (action) { pending.result = action; },
      afterResult: function (action) { pending.after.push(action); },
      useImageRequest: function () { pending.image = true; },
      clearData: function () { pending = blank(); },
      submit: function () {
        submit(pending, "Event");
        pending = blank();
      },
      idSync: function (given) {
        return queued(given, function () { syncUrl(given.dpid, String(given.url), given.minutesToLive, "url"); });
      },
      aamIdSync: function (given) {
        return queued(given, function () {
          var entry = find(declaredSource(given));
          if (entry.reason) { throw "dpuuid not sent: " + entry.reason; }
          entry.source.minutesToLive = given.minutesToLive;
          matchSync(entry);
        });
      },
      checkIds: function () {
        return map(identify(null, []), function (entry) {
          var source = entry.source, ibs = source.via === "ibs";
          var sent = ibs ? isFresh(keyOf(carriedAs(entry))) : isSent(entry);
          return {
            dataSource: namespaceOf(source), place: source.place, via: ibs ? "ibs" : "event", sent: sent,
            value: entry.value && mask(entry.value),
            reason: entry.reason || entry.excess || silence() || (ibs && isOn("disableIDSyncs") ? SYNCS_OFF :
              !sent ? "goes with the next call" : ibs ? "called" : "")
          };
        });
      },
      getContainerNSID: function () { return config.containerNSID; },
      getPartner: function () { return config.partner; },
      getEventLog: function () { return events.slice(); },
      getState: function () {
        var data = {};
        loop(pending.pairs, function (pair) { data[pair[0]] = pair[1].slice(); });
        return {
          pendingRequest: data, uuid: knownDevice(), optedOut: silence(),
          otherRequestInfo: {
            firingQueue: map(queue, function (job) { return job.name; }), fired: fired.slice(), firing: busy
          }
        };
      }
    }, function (name, method) {
      api[name] = function () {
        try {
          var value = method.apply(null, arguments);
          return value === undefined ? api : value;
        } catch (e) {
          log(name + " had no effect: " + why(e), true);
          return api;
        }
      };
    });

    function pageView() {
      if (!calls && config.autoSubmit !== false) { submit(blank(), "Event of the page view"); }
      pump();
    }

    instance.api = api;
    instance.pump = pump;
    instance.pageView = pageView;
    instance.flush = flush;
    instance.variable = function (name) { return variables["v" + name] || ""; };
    /** Also for a second create: its configuration is for what comes, the page view is counted once. */
    instance.start = function (given) {
      var mine = ++round;
      config = given;
      log("Created for partner " + config.partner);
      later(function () { poll(mine, false); });
      if (loaded) { later(pageView); }
    };
  }

  // ---- what the page sees ----

  function nameOf(partner, nsid) { return partner + "\x01" + (nsid === undefined ? 0 : nsid); }

  DIL.openaudience = true;
  DIL.tools = {};
  DIL.modules = { siteCatalyst: {} };

  DIL.create = function (given) {
    try {
      var config = checkedConfig(given), name = nameOf(config.partner, config.containerNSID);
      reporting = reporting || config.enableErrorReporting === true;
      if (!instances[name]) {
        instances[name] = new DIL();
        build(instances[name], config);
      }
      instances[name].start(config);
      return instances[name];
    } catch (e) {
      return new Error("DIL.create: " + why(e));
    }
  };

  DIL.getDil = function (partner, nsid) {
    return instances[nameOf(partner, nsid)] || new Error("The DIL instance with partner " + partner +
      " and containerNSID " + (nsid === undefined ? 0 : nsid) + " was not found.");
  };

  DIL.dexGetQSVars = function (name, partner, nsid) {
    var instance = DIL.getDil(partner, nsid);
    return instance instanceof DIL ? instance.variable(name) : "";
  };

  DIL.tools.getMetaTags = function () {
    var found = {};
    loop(arguments, function (name) {
      var content = metaTag(name);
      if (content !== null) { found[name] = content; }
    });
    return found;
  };

  DIL.tools.decomposeURI = function (uri) {
    var link = doc.createElement("a"), parts = { uriParams: {} };
    link.href = uri || win.location.href;
    loop(["hash", "host", "hostname", "href", "pathname", "protocol", "search"], function (name) {
      parts[name] = link[name];
    });
    loop(pairsOf(link.search.slice(1), "&", decodeForm), function (pair) {
      if (pair[0]) { parts.uriParams[pair[0]] = pair[1]; }
    });
    return parts;
  };

  /** Sends the analytics variables each time the analytics library sends its own call. */
  DIL.modules.siteCatalyst.init = function (s, dil, trackVars, options) {
    var track = trackVars || {
      names: ["pageName", "channel", "campaign", "products", "events", "pe", "pev1", "pev2", "pev3"],
      iteratedNames: [{ name: "eVar", maxIndex: 250 }, { name: "prop", maxIndex: 75 }]
    };
    var choice = options || {}, period = choice.replaceContextDataPeriodsWith;

    function collect() {
      var values = {}, names = list(track.names).slice();
      loop(list(track.iteratedNames), function (one) {
        for (var i = 1; i <= one.maxIndex; i++) { names.push(one.name + i); }
      });
      loop(names, function (name) { if (s[name]) { values["c_" + name] = s[name]; } });
      each(s.contextData, function (name, value) {
        if (list(choice.filterFromContextVariables).indexOf(name) < 0) {
          values["c_contextData_" + name.split(".").join(typeof period === "string" ? period : "_")] = value;
        }
      });
      dil.api.signals(values).submit();
    }

    if (!s || !(dil instanceof DIL)) { return new Error("siteCatalyst.init needs the analytics object and a DIL"); }
    if (s.registerPreTrackCallback) { return s.registerPreTrackCallback(collect); }
    loop(["t", "tl"], function (name) {
      var original = s[name];
      if (!original) { return; }
      s[name] = function () {
        attempt(collect);
        return original.apply(this, arguments);
      };
    });
  };

  DIL.isAddedPostWindowLoad = function () {
    if (loaded) { return; }
    loaded = true;
    loadedAt = Date.now();
    all("pageView", later);
  };

  win.DIL = DIL;
  win.addEventListener("load", DIL.isAddedPostWindowLoad, false);
  win.addEventListener("pagehide", function () {
    gone = true;
    all("flush", attempt);
  }, false);
  win.addEventListener("pageshow", function () { // the page has come back as it was
    gone = false;
    all("pump", later);
  }, false);
}(window));
