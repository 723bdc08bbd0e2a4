-- Many jobs in one step: all of them, or none.

-- batch tenant queue key body limits rows: JSON, of each job what submit takes up to
-- `work` -> as submit
function step.submit_all(batch, tenant, queue, key, body, limits, rows)
  if redis.call('EXISTS', P .. 'batch:' .. batch) == 1 then return {1, batch} end  -- sent twice
  local idem = P .. 'idem-batch:' .. tenant .. ':' .. key
  if key ~= '' then
    local h = redis.call('HMGET', idem, 'id', 'body')
    if h[1] and redis.call('EXISTS', P .. 'batch:' .. h[1]) == 1 then
      return {h[2] == body and 0 or -1, h[1]}
    end
  end
  local jobs = cjson.decode(rows)
  local full = no_room(queue, tenant, #jobs, limits)
  if full then return full end
  if key ~= '' then
    redis.call('HSET', idem, 'id', batch, 'body', body)
    redis.call('EXPIRE', idem, 86400)
  end
  redis.call('HSET', P .. 'batch:' .. batch, 'tenant', tenant, 'created_at', time(now), 'total', #jobs)
  for _, row in ipairs(jobs) do
    now = now + 1e-4  -- keeps their order, in pages and in the queue, whose scores know no less
    row[15], row[16], row[17] = '', '', ''  -- and no limits: they were looked at above
    step.submit(unpack(row))
    redis.call('HSET', job(row[1]), 'batch', batch)
    redis.call('ZADD', P .. 'batch:' .. batch .. ':jobs', time(now), row[1])
  end
  return {1, batch}
end

-- A job of it is gone, and with the last one the batch.
local function leave_batch(batch, id)
  redis.call('ZREM', P .. 'batch:' .. batch .. ':jobs', id)
  if redis.call('EXISTS', P .. 'batch:' .. batch .. ':jobs') == 0 then
    redis.call('DEL', P .. 'batch:' .. batch)
  end
end
