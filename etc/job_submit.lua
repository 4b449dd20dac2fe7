-- slurm-mig's submit plugin for Slurm's job_submit/lua.
--
-- Refuses requests that nobody may make or that no GPU can ever serve, with a message that says what
-- is possible, and gives an untyped request (--gres=gpu:1) the type of its partition. What is
-- possible comes from submit.lua, which slurm-mig writes. A fault in here never blocks submission:
-- the job passes as it came and the fault is logged.
--
-- Use it as the site's job_submit.lua, or from an existing one:
--     dofile("/etc/slurm/slurm-mig/job_submit.lua")
--     ... and in slurm_job_submit:  local rc = slurm_mig.submit(job_desc, part_list)
--                                   if rc ~= slurm.SUCCESS then return rc end

slurm_mig = slurm_mig or {}
slurm_mig.table_path = slurm_mig.table_path or "/etc/slurm/slurm-mig/submit.lua"

local FIELDS = { "tres_per_node", "tres_per_job", "tres_per_task", "tres_per_socket", "gres" }

local function contains(list, value)
    for _, item in ipairs(list or {}) do
        if item == value then return true end
    end
    return false
end

local function is_filler(known, name)
    return name == "guard" or name == "none" or name:match("^off%d*$") ~= nil
        or contains(known.fillers, name)
end

-- The job's partition, or the cluster's default one.
local function partition_of(job_desc, part_list)
    local name = job_desc.partition
    if name and name ~= "" then return name:match("^[^,]+") end
    for key, part in pairs(part_list or {}) do
        if part.flag_default == 1 or part.flag_default == true then return key end
    end
    return nil
end

-- "gres/gpu:3g.20gb:1" to prefix "gres/", type "3g.20gb", rest ":1"; nil for what is not a gpu.
local function split(entry)
    local prefix, rest = entry:match("^(gres[/:])(.*)$")
    if not prefix then prefix, rest = "", entry end
    if rest == "gpu" then return prefix, nil, "" end
    local after = rest:match("^gpu[:=](.*)$")
    if not after then return nil end
    if after:match("^%d+$") then return prefix, nil, ":" .. after end
    local kind, count = after:match("^(.-)([:=]%d+)$")
    return prefix, kind or after, count or ""
end

-- The entry as it should be, or nil and the message for the user.
local function checked(entry, known, partition)
    local prefix, kind, rest = split(entry)
    if prefix == nil then return entry end
    local possible = known.possible[partition]
    if kind == nil then
        local default = known.default_types[partition]
        if known.untyped ~= "refuse" and default then
            return prefix .. "gpu:" .. default .. rest
        end
        if not possible then return entry end
        return nil, "say which GPU you want, for example --gres=gpu:" .. possible[1]
            .. ":1; partition " .. partition .. " has " .. table.concat(possible, ", ")
    end
    if is_filler(known, kind) then
        return nil, "gpu:" .. kind .. " is no device that a job may ask for"
    end
    if possible and not contains(possible, kind) then
        return nil, "no GPU of partition " .. partition .. " can ever be gpu:" .. kind
            .. "; possible: " .. table.concat(possible, ", ")
    end
    return entry
end

local function check_field(job_desc, field, known, partition)
    local value = job_desc[field]
    if type(value) ~= "string" or not value:find("gpu", 1, true) then return nil end
    local entries = {}
    for entry in value:gmatch("[^,]+") do
        local new, message = checked(entry, known, partition)
        if not new then return message end
        entries[#entries + 1] = new
    end
    local joined = table.concat(entries, ",")
    if joined ~= value then job_desc[field] = joined end
    return nil
end

local function check(job_desc, part_list)
    local loaded = loadfile(slurm_mig.table_path)
    if not loaded then return nil end
    local known = loaded()
    local partition = partition_of(job_desc, part_list)
    if not partition then return nil end
    for _, field in ipairs(FIELDS) do
        local ok, message = pcall(check_field, job_desc, field, known, partition)
        if not ok then error(message, 0) end
        if message then return message end
    end
    return nil
end

-- slurm.SUCCESS, or slurm.ERROR after the user has been told why.
function slurm_mig.submit(job_desc, part_list)
    local ok, message = pcall(check, job_desc, part_list)
    if not ok then
        slurm.log_error("slurm-mig: submit plugin: %s", tostring(message))
        return slurm.SUCCESS
    end
    if message then
        slurm.log_user("slurm-mig: %s", message)
        return slurm.ERROR
    end
    return slurm.SUCCESS
end

if not slurm_job_submit then
    function slurm_job_submit(job_desc, part_list, _)
        return slurm_mig.submit(job_desc, part_list)
    end
    function slurm_job_modify(job_desc, _, part_list, _)
        return slurm_mig.submit(job_desc, part_list)
    end
end

return slurm.SUCCESS
