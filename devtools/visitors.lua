-- The demo's visitors, for wrk: one thread and one connection each (wrk -t100 -c100), so that a thread's
-- requests and answers come by turns and each answer's time is known together with its status.
-- Every tenth visitor writes notes; the others look round. Prints one line of JSON at the end.

local ffi = require("ffi")
ffi.cdef [[
  typedef struct { long seconds, nanoseconds; } timespec;
  int clock_gettime(int clock, timespec *time);
]]
local MONOTONIC_CLOCK = 1
local WORDS = { "san", "new", "lo", "ber", "ma", "king", "al", "tok", "sai", "b" }
local COUNTRIES = { "US", "FR", "IN", "BR", "CN", "DE", "NG", "JP", "MX", "ID" }
local CITIES = { 1796236, 3871336, 4726206, 5391811, 5128581, 2643743, 2950159, 1850147, 2988507, 3448439 }
local PATIENCE = 10 * 1000000  -- microseconds; who got no answer for so long at the end gets none at all
local TOKEN = string.rep("a", 32)  -- Django wants the same token from the cookie and from the form

local now = ffi.new("timespec")
local function microseconds()
  ffi.C.clock_gettime(MONOTONIC_CLOCK, now)
  return tonumber(now.seconds) * 1000000 + tonumber(now.nanoseconds) / 1000
end

local function any(list) return list[math.random(#list)] end

local function get(path) return wrk.format("GET", path) end

local function write()
  local headers = { ["Content-Type"] = "application/x-www-form-urlencoded", ["Cookie"] = "csrftoken=" .. TOKEN }
  local body = "text=Wish+you+were+here&csrfmiddlewaretoken=" .. TOKEN
  return wrk.format("POST", "/cities/" .. any(CITIES) .. "/notes/", headers, body)
end

local looks = {
  function() return get("/?q=" .. any(WORDS)) end,
  function() return get("/cities/" .. any(CITIES) .. "/") end,
  function() return get("/api/cities/?country=" .. any(COUNTRIES)) end,
}

local threads = {}
function setup(thread)
  table.insert(threads, thread)
  thread:set("number", #threads)
end

function init()
  good, failed, waiting, started = {}, 0, false, 0  -- global: done() asks each thread for them
  math.randomseed(number)
end

function request()
  waiting, started = true, microseconds()
  if number % 10 == 0 then return write() end
  return any(looks)()
end

function response(status)
  waiting = false
  if status >= 200 and status < 400 then
    good[#good + 1] = microseconds() - started
  else
    failed = failed + 1
  end
end

function done(summary)
  local errors, times, failures = summary.errors, {}, 0
  local long_ago = microseconds() - PATIENCE
  for _, thread in ipairs(threads) do
    failures = failures + thread:get("failed")
    if thread:get("waiting") and thread:get("started") < long_ago then failures = failures + 1 end
    for _, time in ipairs(thread:get("good")) do times[#times + 1] = string.format("%.0f", time) end
  end
  failures = failures + errors.connect + errors.read + errors.write
  print(string.format('{"failed": %d, "seconds": %.3f, "microseconds": [%s]}',
    failures, summary.duration / 1000000, table.concat(times, ",")))
end
